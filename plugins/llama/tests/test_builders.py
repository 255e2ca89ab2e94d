"""The functions under torchtune's names: signatures, devices, dtypes, and where a LoRA goes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from graftwork.errors import MissingExtraError, ModelError, UsageError
from graftwork_llama import code_llama2, llama2, llama3, llama3_1, llama3_2

SHAPE = {
    "vocab_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "max_seq_len": 64,
}
# Of torchtune as of June 2024, whose users call these by position.
SIGNATURES = {
    llama2.llama2: "vocab_size num_layers num_heads num_kv_heads embed_dim max_seq_len attn_dropout=0.0 "
    "intermediate_dim=None norm_eps=1e-05",
    llama3.llama3: "vocab_size num_layers num_heads num_kv_heads embed_dim max_seq_len attn_dropout=0.0 "
    "rope_base=500000 intermediate_dim=None norm_eps=1e-05",
    llama2.lora_llama2: "lora_attn_modules apply_lora_to_mlp=False apply_lora_to_output=False * attn_dropout=0.0 "
    "embed_dim intermediate_dim=None lora_alpha lora_dropout=0.0 lora_rank max_seq_len norm_eps=1e-05 num_heads "
    "num_kv_heads num_layers quantize_base=False vocab_size",
    llama3.lora_llama3: "lora_attn_modules apply_lora_to_mlp=False apply_lora_to_output=False * attn_dropout=0.0 "
    "embed_dim intermediate_dim=None lora_alpha lora_dropout=0.0 lora_rank max_seq_len norm_eps=1e-05 num_heads "
    "num_kv_heads num_layers quantize_base=False rope_base=500000 vocab_size",
    llama2.lora_llama2_7b: "lora_attn_modules apply_lora_to_mlp=False apply_lora_to_output=False lora_rank=8 "
    "lora_alpha=16 lora_dropout=0.05 quantize_base=False",
    code_llama2.lora_code_llama2_7b: "lora_attn_modules apply_lora_to_mlp=False apply_lora_to_output=False lora_rank=8 "
    "lora_alpha=16 lora_dropout=0.05 quantize_base=False",
    llama3_1.llama3_1: "vocab_size num_layers num_heads num_kv_heads embed_dim max_seq_len attn_dropout=0.0 "
    "rope_base=500000 intermediate_dim=None norm_eps=1e-05 scale_factor=8",
    # Of its last release, the first to have all of these.
    llama3_2.llama3_2: "vocab_size num_layers num_heads num_kv_heads embed_dim max_seq_len attn_dropout=0.0 "
    "rope_base=500000 intermediate_dim=None norm_eps=1e-05 scale_factor=32 tie_word_embeddings=True",
    llama3_1.lora_llama3_1_8b: "lora_attn_modules apply_lora_to_mlp=False apply_lora_to_output=False lora_rank=8 "
    "lora_alpha=16 lora_dropout=0.0 use_dora=False quantize_base=False",
    llama3_2.lora_llama3_2_1b: "lora_attn_modules apply_lora_to_mlp=False apply_lora_to_output=False lora_rank=8 "
    "lora_alpha=16 lora_dropout=0.0 use_dora=False quantize_base=False",
    llama3.lora_llama3_8b: "lora_attn_modules apply_lora_to_mlp=False apply_lora_to_output=False lora_rank=8 "
    "lora_alpha=16 quantize_base=False * lora_dropout=0.05",
}
SIZED = [
    *(getattr(llama2, f"llama2_{size}") for size in ("7b", "13b", "70b")),
    *(getattr(code_llama2, f"code_llama2_{size}") for size in ("7b", "13b", "34b", "70b")),
    *(getattr(llama3, f"llama3_{size}") for size in ("8b", "70b")),
    *(getattr(llama3_1, f"llama3_1_{size}") for size in ("8b", "70b", "405b")),
    *(getattr(llama3_2, f"llama3_2_{size}") for size in ("1b", "3b")),
]


def spelled(function: Any) -> str:
    """A signature in short; the order of what is given by keyword means nothing, so it is the alphabet's."""
    parameters = inspect.signature(function).parameters.values()
    words = [
        p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters if p.kind is not p.KEYWORD_ONLY
    ]
    by_name = sorted(
        p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters if p.kind is p.KEYWORD_ONLY
    )
    return " ".join([*words, *(["*", *by_name] if by_name else [])])


@pytest.mark.parametrize("function", list(SIGNATURES), ids=lambda function: function.__name__)
def test_signatures(function: Any) -> None:
    assert spelled(function) == SIGNATURES[function]


@pytest.mark.parametrize("function", SIZED, ids=lambda function: function.__name__)
def test_sized_builders_on_meta(function: Any) -> None:
    with torch.device("meta"):
        model = function()
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert model.training


def test_the_default_dtype_is_respected() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = llama3.llama3(**SHAPE)
    finally:
        torch.set_default_dtype(before)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_arguments_reach_the_configuration() -> None:
    config = llama3.llama3(64, 1, 2, 1, 16, 32, 0.1, 1000, 48, 1e-6).config
    assert (config.vocab_size, config.num_hidden_layers, config.num_attention_heads) == (64, 1, 2)
    assert (config.num_key_value_heads, config.hidden_size, config.max_position_embeddings) == (1, 16, 32)
    assert (config.attention_dropout, config.intermediate_size, config.rms_norm_eps) == (0.1, 48, 1e-6)
    assert config.rope_parameters["rope_theta"] == 1000.0


def test_llama2_has_its_rope_and_width() -> None:
    with torch.device("meta"):
        config = llama2.llama2(**{**SHAPE, "embed_dim": 4096}).config
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert config.intermediate_size == 11008


def test_llama3_1_stretches_by_the_factor_given() -> None:
    rope = llama3_1.llama3_1(**SHAPE, scale_factor=16).config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("llama3", 16.0, 500_000.0)
    assert llama3_1.llama3_1(**SHAPE).config.rope_parameters["factor"] == 8.0


def test_llama3_2_is_tied_and_stretched() -> None:
    config = llama3_2.llama3_2(**SHAPE).config
    assert config.tie_word_embeddings and config.rope_parameters["factor"] == 32.0
    assert not llama3_2.llama3_2(**SHAPE, tie_word_embeddings=False).config.tie_word_embeddings
    with pytest.raises(UsageError, match="the output layer of this model is its embedding"):
        llama3_2.lora_llama3_2(["q_proj"], False, True, **SHAPE, lora_rank=4, lora_alpha=8)


def test_a_lora_goes_where_it_is_named() -> None:
    model = llama3.lora_llama3(["q_proj", "output_proj"], True, True, **SHAPE, lora_rank=4, lora_alpha=8)
    trained = {
        name.split(".lora_")[0].rsplit(".", 1)[1] for name, weight in model.named_parameters() if weight.requires_grad
    }
    assert trained == {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    assert model.training
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.0)


def test_a_fresh_lora_changes_nothing() -> None:
    torch.manual_seed(0)
    base = llama2.llama2(**SHAPE).eval()
    torch.manual_seed(0)
    model = llama2.lora_llama2(["q_proj", "v_proj"], **SHAPE, lora_rank=4, lora_alpha=8, lora_dropout=0.5).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, base(ids).logits)


def test_sized_lora_on_meta() -> None:
    with torch.device("meta"):
        model = llama2.lora_llama2_7b(["q_proj", "v_proj"], False, False, 4, 8, 0.1)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == 32 * 2 * (4096 * 4 + 4 * 4096)


def test_sizes_that_do_not_fit_together_are_one_error() -> None:
    with pytest.raises(ModelError, match="the configuration of this llama model is not valid"):
        llama3.llama3(**{**SHAPE, "num_heads": 3})


def test_modules_are_checked_as_in_torchtune() -> None:
    with pytest.raises(ValueError, match="lora_attn_modules is empty: name one or more of q_proj, k_proj"):
        llama3.lora_llama3_8b([])
    with pytest.raises(UsageError, match=r"is the text .q_proj., and takes a list: \[.q_proj.\]"):
        llama3.lora_llama3_8b("q_proj")
    with pytest.raises(UsageError, match="'o_proj' is not known: did you mean output_proj"):
        llama3.lora_llama3_8b(["o_proj"])
    with pytest.raises(UsageError, match="apply_lora_to_output: the output layer of this model is its embedding"):
        llama3_2.lora_llama3_2_1b(["q_proj"], False, True)


def test_qlora_says_which_plugin_is_missing() -> None:
    with torch.device("meta"), pytest.raises(MissingExtraError, match="pip install graftwork-bitsandbytes"):
        llama3.qlora_llama3_8b(["q_proj"])
