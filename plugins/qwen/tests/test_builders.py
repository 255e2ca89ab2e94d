"""The functions under torchtune's names: signatures, what they build, and where a LoRA goes."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.errors import UsageError
from graftwork.registry import get_registry
from graftwork_qwen import qwen2, qwen2_5, qwen3

SHAPE = {
    "vocab_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "intermediate_dim": 48,
    "max_seq_len": 64,
}
NORMALISED = {"q_proj_bias": False, "k_proj_bias": False, "v_proj_bias": False, "q_norm": True, "k_norm": True}
DECODER = "vocab_size num_layers num_heads num_kv_heads embed_dim intermediate_dim max_seq_len"
MORE = (
    "head_dim=None attn_dropout=0.0 norm_eps=1e-05 rope_base=1000000.0 tie_word_embeddings=False q_proj_bias=True "
    "k_proj_bias=True v_proj_bias=True q_norm=False k_norm=False"
)
TAIL = "lora_dropout=0.0 use_dora=False quantize_base=False"
SIZED = f"lora_rank=8 lora_alpha=16 {TAIL}"
LORA = "lora_attn_modules apply_lora_to_mlp=False apply_lora_to_output=False"
# Of torchtune's last release, whose users call these by position.
SIGNATURES = {
    qwen2.qwen2: f"{DECODER} {MORE}",
    qwen3.qwen3: f"{DECODER} {MORE}",
    qwen2.lora_qwen2: f"{LORA} * {DECODER} {MORE} lora_rank lora_alpha {TAIL}",
    qwen3.lora_qwen3: f"{LORA} * {DECODER} {MORE} lora_rank lora_alpha {TAIL}",
    qwen2.lora_qwen2_7b: f"{LORA} {SIZED}",
    qwen2.lora_qwen2_0_5b: f"lora_attn_modules apply_lora_to_mlp=False {SIZED}",
    qwen2.lora_qwen2_1_5b: f"lora_attn_modules apply_lora_to_mlp=False {SIZED}",
    qwen2_5.lora_qwen2_5_0_5b: f"{LORA} {SIZED}",
    qwen3.lora_qwen3_32b: f"{LORA} {SIZED}",
}


def spelled(function: Any) -> str:
    words, starred = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        words.append(name if parameter.default is parameter.empty else f"{name}={parameter.default}")
    return " ".join(words)


@pytest.mark.parametrize("function", list(SIGNATURES), ids=lambda function: function.__name__)
def test_signatures(function: Any) -> None:
    assert spelled(function) == SIGNATURES[function]


def test_every_size_has_its_three_functions() -> None:
    modules = {"qwen2_5": qwen2_5, "qwen3": qwen3}
    for preset in get_registry().families["qwen"].presets:
        module = next((found for start, found in modules.items() if preset.name.startswith(f"{start}_")), qwen2)
        module = qwen2 if preset.name.startswith("qwen2_") and not preset.name.startswith("qwen2_5_") else module
        assert all(callable(getattr(module, f"{kind}{preset.name}")) for kind in ("", "lora_", "qlora_"))


def test_generic_builders() -> None:
    second = qwen2.qwen2(**SHAPE, tie_word_embeddings=True)
    assert type(second).__name__ == "Qwen2ForCausalLM"
    assert second.config.tie_word_embeddings
    assert second.model.layers[0].self_attn.q_proj.bias is not None
    third = qwen3.qwen3(**SHAPE, **NORMALISED)
    assert type(third).__name__ == "Qwen3ForCausalLM"
    assert third.model.layers[0].self_attn.q_proj.bias is None
    assert third.config.head_dim == 8, "the width over the heads where nothing is said"
    assert qwen3.qwen3(**SHAPE, **NORMALISED, head_dim=32).model.layers[0].self_attn.q_proj.out_features == 128


def test_the_arguments_say_which_of_the_two_it_is() -> None:
    """Both functions of torchtune build what is asked for, and have Qwen2's parts as their default."""
    for build in (qwen2.qwen2, qwen3.qwen3):
        assert build(**SHAPE).config.model_type == "qwen2"
        assert build(**SHAPE, **NORMALISED).config.model_type == "qwen3"
    wide = qwen2.qwen2(**SHAPE, head_dim=16)
    assert wide.model.layers[0].self_attn.q_proj.out_features == 64
    assert wide(torch.arange(3, 9)[None]).logits.shape == (1, 6, 64)


def test_what_transformers_has_no_model_for_is_refused() -> None:
    with pytest.raises(UsageError, match="q_norm=True cannot be had: transformers' qwen2 always has q_norm=False"):
        qwen2.qwen2(**SHAPE, q_norm=True)
    with pytest.raises(UsageError, match="v_proj_bias=True cannot be had: transformers' qwen3 always has v_proj_bias="):
        qwen3.qwen3(**SHAPE, **{**NORMALISED, "v_proj_bias": True})


def test_a_lora_goes_where_it_is_named() -> None:
    model = qwen2.lora_qwen2(["q_proj", "output_proj"], True, True, **SHAPE, lora_rank=4, lora_alpha=8)
    trained = {
        name.split(".lora_")[0].rsplit(".", 1)[1] for name, weight in model.named_parameters() if weight.requires_grad
    }
    assert trained == {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}


def test_a_tied_head_gets_no_lora() -> None:
    with torch.device("meta"), pytest.raises(UsageError, match="the output layer of this model is its embedding"):
        qwen2_5.lora_qwen2_5_0_5b(["q_proj"], False, True)


def test_stop_tokens_are_the_published_ones() -> None:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the published tokenizer is not here")
    config = json.loads((Path(root) / "tokenizers/qwen2.5/tokenizer_config.json").read_text())
    ids = {token["content"]: int(token_id) for token_id, token in config["added_tokens_decoder"].items()}
    published = json.loads((Path(root) / "model_meta/generation_config/qwen2-instruct.json").read_text())
    family = get_registry().families["qwen"]
    assert {ids[text] for text in family.stop_tokens} == set(published["stop_token_ids"])
    for preset in family.presets:
        assert preset.values["eos_token_id"] in published["stop_token_ids"]
