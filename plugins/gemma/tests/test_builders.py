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
from graftwork_gemma import gemma, gemma2, gemma3

SHAPE = {
    "vocab_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "head_dim": 16,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "intermediate_dim": 48,
    "max_seq_len": 64,
}
DECODER = "vocab_size num_layers num_heads head_dim num_kv_heads embed_dim intermediate_dim max_seq_len"
MORE = "attn_dropout=0.0 norm_eps=1e-06 rope_base=10000"
CAPS = (
    "hidden_capping_value=50.0 final_capping_value=30.0 sliding_window_size=4096 query_pre_attn_scalar=None"  # as there
)
# Gemma 1 as in June 2024, Gemma 2 as in torchtune's last release; their users call these by position.
SIGNATURES = {
    gemma.gemma: f"{DECODER} {MORE} norm_embeddings=True",
    gemma.lora_gemma: f"lora_attn_modules apply_lora_to_mlp=False * {DECODER} {MORE} norm_embeddings=True "
    "lora_rank lora_alpha lora_dropout=0.0 quantize_base=False",
    gemma.lora_gemma_2b: "lora_attn_modules apply_lora_to_mlp=False lora_rank=8 lora_alpha=16 quantize_base=False "
    "* lora_dropout=0.05",
    gemma2.gemma2: f"{DECODER} {MORE} {CAPS}",
    gemma2.lora_gemma2: f"lora_attn_modules apply_lora_to_mlp=False * {DECODER} {MORE} {CAPS} lora_rank lora_alpha "
    "lora_dropout=0.0 use_dora=False quantize_base=False",
    gemma2.lora_gemma2_9b: "lora_attn_modules apply_lora_to_mlp=False lora_rank=8 lora_alpha=16 lora_dropout=0.0 "
    "use_dora=False quantize_base=False",
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


@pytest.mark.parametrize("module", [gemma, gemma2, gemma3])
def test_every_size_has_its_three_functions(module: Any) -> None:
    family = get_registry().families["gemma"]
    prefix = f"{module.__name__.rpartition('.')[2]}_"
    names = [preset.name for preset in family.presets if preset.name.startswith(prefix)]
    assert names
    for name in names:
        assert all(callable(getattr(module, f"{kind}{name}")) for kind in ("", "lora_", "qlora_"))
    assert module.__name__ in family.components


def test_the_caps_of_the_generic_builder_are_where_the_model_has_them() -> None:
    config = gemma2.gemma2(**SHAPE, hidden_capping_value=7.0, final_capping_value=9.0, sliding_window_size=5).config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping, config.sliding_window) == (7.0, 9.0, 5)
    assert config.query_pre_attn_scalar == 16, "the width of a head where nothing is said"
    assert gemma2.gemma2(**SHAPE, query_pre_attn_scalar=8).config.query_pre_attn_scalar == 8


def test_embeddings_are_always_scaled() -> None:
    assert gemma.gemma(**SHAPE, rope_base=500).config.rope_parameters["rope_theta"] == 500.0
    with pytest.raises(UsageError, match="norm_embeddings=False cannot be had: transformers' gemma always has"):
        gemma.gemma(**SHAPE, norm_embeddings=False)


@pytest.mark.parametrize("build", [gemma.lora_gemma, gemma2.lora_gemma2])
def test_a_lora_goes_where_it_is_named(build: Any) -> None:
    model = build(["q_proj", "output_proj"], True, **SHAPE, lora_rank=4, lora_alpha=8)
    trained = {
        name.split(".lora_")[0].rsplit(".", 1)[1] for name, weight in model.named_parameters() if weight.requires_grad
    }
    assert trained == {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_dora_where_torchtune_has_it() -> None:
    model = gemma2.lora_gemma2(["q_proj"], **SHAPE, lora_rank=4, lora_alpha=8, use_dora=True)
    assert model.peft_config["default"].use_dora
    assert any("lora_magnitude" in name for name, _ in model.named_parameters())


def test_a_sized_lora_on_meta() -> None:
    with torch.device("meta"):
        model = gemma.lora_gemma_2b(["q_proj", "v_proj"], False, 4, 8)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == 18 * 4 * (2048 + 2048 + 2048 + 256)


def test_stop_tokens_are_the_published_ones() -> None:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the published tokenizer is not here")
    ids = json.loads((Path(root) / "tokenizers/gemma/tokenizer.json").read_text())["model"]["vocab"]
    published = json.loads((Path(root) / "model_meta/generation_config/gemma-it.json").read_text())
    family = get_registry().families["gemma"]
    assert {ids[text] for text in family.stop_tokens} == set(published["stop_token_ids"])
    assert all(text in ids for text in family.special_tokens.values())
