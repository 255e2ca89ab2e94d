"""The builder functions that any family gets from its presets, here those of a toy Qwen 2."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from graftwork.builders.torchtune_names import DECODER_DEFAULTS, SHAPE, builders, generic_builders, scale_hidden_dim
from graftwork.errors import UsageError
from graftwork.specs import Preset

TOY = Preset(
    name="qwen2_toy",
    model_type="qwen2",
    values={
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    num_parameters=0,
)
FAMILY = """
from graftwork import hookimpl
from graftwork.specs import ModelFamily, QuantizerSpec

@hookimpl
def graftwork_model_families():
    roles = {"output_proj": ("o_proj",), "mlp": ("gate_proj", "up_proj", "down_proj")}
    return [ModelFamily(name="toy", model_types=("qwen2",), lora_targets=roles)]

def _halve(model, params):
    for weight in model.parameters():
        weight.data = (weight.data * 2).round() / 2
    model.halved = params.bnb_4bit_quant_type
    return model

@hookimpl
def graftwork_quantizers():
    how = {HOW}
    return [QuantizerSpec(name="halves", bits=(4,), devices=("cpu",), trainable=True, **how)]
"""


def test_three_functions_from_a_preset(install_plugin: Any) -> None:
    install_plugin(FAMILY.replace("{HOW}", "{'quantize': _halve}"))
    build, lora, qlora = builders(TOY)
    assert (build.__name__, lora.__name__) == ("qwen2_toy", "lora_qwen2_toy")
    assert type(build()).__name__ == "Qwen2ForCausalLM"
    names = {name for name, weight in lora(["output_proj"], True).named_parameters() if weight.requires_grad}
    assert len(names) == 2 * 4 * 2
    quantized = qlora(["q_proj"])
    base = quantized.get_base_model()
    assert base.halved == "nf4"
    weights = [weight for name, weight in base.named_parameters() if "lora_" not in name]
    assert all(torch.equal(weight * 2, (weight * 2).round()) for weight in weights)
    assert quantized.training


def test_a_quantizer_that_only_loads_is_refused(install_plugin: Any) -> None:
    install_plugin(FAMILY.replace("{HOW}", "{'quantization_config': dict}"))
    with pytest.raises(UsageError, match="'halves' quantizes while it loads a checkpoint, and this has fresh weights"):
        builders(TOY)[2](["q_proj"])


@pytest.mark.parametrize(("width", "hidden"), [(4096, 11008), (5120, 13824), (64, 256)])
def test_the_default_hidden_width(width: int, hidden: int) -> None:
    assert scale_hidden_dim(width) == hidden  # of the published Llama 2 7B and 13B


ODD: tuple[Any, Any] = generic_builders(
    "odd",
    {"gemma2": {"norm_embeddings": True}},
    required=(*SHAPE, "head_dim", "*", "intermediate_dim", "max_seq_len"),
    defaults={"rope_base": 10_000, "final_cap": 30.0, "scalar": None, "norm_embeddings": True},
    fields={"final_cap": "final_logit_softcapping", "scalar": "query_pre_attn_scalar"},
    derive=lambda arguments: {"query_pre_attn_scalar": arguments["scalar"] or arguments["head_dim"]},
    lora_output=False,
    sliding_window=4,
)
SIZE = {"vocab_size": 64, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 32, "head_dim": 6}
WIDTHS = {"intermediate_dim": 48, "max_seq_len": 64}


def test_a_generic_builder_has_the_signature_that_its_data_say() -> None:
    plain, lora = ODD
    assert str(inspect.signature(plain)) == (
        "(vocab_size, num_layers, num_heads, num_kv_heads, embed_dim, head_dim, *, intermediate_dim, max_seq_len, "
        "rope_base=10000, final_cap=30.0, scalar=None, norm_embeddings=True)"
    )
    assert str(inspect.signature(lora)).startswith("(lora_attn_modules, apply_lora_to_mlp=False, *, vocab_size,")
    assert str(inspect.signature(lora)).endswith("lora_rank, lora_alpha, lora_dropout=0.0, quantize_base=False)")
    assert (plain.__name__, lora.__name__) == ("odd", "lora_odd")


def test_arguments_become_fields_by_the_tables() -> None:
    config = ODD[0](*SIZE.values(), **WIDTHS, rope_base=500, final_cap=2.0).config
    assert (config.num_hidden_layers, config.head_dim, config.sliding_window) == (1, 6, 4)
    assert config.rope_parameters["rope_theta"] == 500.0
    assert (config.final_logit_softcapping, config.query_pre_attn_scalar) == (2.0, 6)
    assert ODD[0](*SIZE.values(), **WIDTHS, scalar=3).config.query_pre_attn_scalar == 3


def test_calls_that_do_not_fit_say_the_signature() -> None:
    with pytest.raises(TypeError, match=r"odd\(\): missing a required .*'intermediate_dim'; it takes \(vocab_size"):
        ODD[0](*SIZE.values())
    with pytest.raises(TypeError, match=r"lora_odd\(\): got an unexpected keyword argument 'apply_lora_to_output'"):
        ODD[1](["q_proj"], apply_lora_to_output=True, **SIZE, **WIDTHS, lora_rank=2, lora_alpha=4)
    with pytest.raises(UsageError, match=r"odd: norm_embeddings=False cannot be had: transformers' gemma2 always has"):
        ODD[0](*SIZE.values(), **WIDTHS, norm_embeddings=False)


def test_a_generic_lora(install_plugin: Any) -> None:
    install_plugin(FAMILY.replace("{HOW}", "{'quantize': _halve}"))
    lora = generic_builders("qwen2", "qwen2", defaults={**DECODER_DEFAULTS, "tie_word_embeddings": False})[1]
    shape = {name: value for name, value in SIZE.items() if name != "head_dim"}
    model = lora(["q_proj"], **shape, **WIDTHS, tie_word_embeddings=True, lora_rank=2, lora_alpha=4)
    assert model.config.tie_word_embeddings
    assert {name.split(".")[-4] for name, weight in model.named_parameters() if weight.requires_grad} == {"q_proj"}


def test_a_generic_lora_loads_its_base_as_torchtunes_recipes_do(install_plugin: Any) -> None:
    install_plugin(FAMILY.replace("{HOW}", "{'quantize': _halve}"))
    plain, lora = generic_builders("qwen2", "qwen2")
    shape = {name: value for name, value in SIZE.items() if name != "head_dim"}
    base = plain(**shape, **WIDTHS)
    model = lora(["q_proj"], True, **shape, **WIDTHS, lora_rank=2, lora_alpha=4)
    missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
    assert unexpected == []
    assert missing
    assert all("lora_" in name for name in missing)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids).logits, base(ids).logits)
    assert model.load_state_dict(model.state_dict()).missing_keys == []
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(base.state_dict())
