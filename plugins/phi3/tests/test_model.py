"""Phi-3 and Phi-4 against an independent forward pass, published counts and a published file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from graftwork import ModelParams, build_model
from graftwork.registry import get_registry
from graftwork.testing import assert_every_number_matters, logits_comparison
from graftwork_phi3.presets import PHI3_MINI_128K, PHI4_14B, PRESETS

from .reference import reference_logits

FAMILY = get_registry().families["phi3"]


def stretched(first: int, **more: Any) -> dict[str, Any]:
    """LongRoPE for rows of 24 tokens: longer than ``first``, or not."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "short_factor": [1.0, 1.1, 1.5, 2.0],
        "long_factor": [1.2, 2.5, 9.0, 30.0],
        "original_max_position_embeddings": first,
    }
    return {"rope_parameters": {**rope, **more}, "original_max_position_embeddings": first}


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "no window": {"sliding_window": None},
    "a part of a head is rotated": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    },
    "longer than at first": stretched(16),
    "not longer than at first": stretched(24),
    "explicit factors": stretched(16, factor=4.0, attention_factor=1.3),
    "tied": {"tie_word_embeddings": True},
}
DROPOUT = "only in training"
UNREAD = {"resid_pdrop": DROPOUT, "embd_pdrop": "transformers never applies it; 0 in all published"}
LENGTH = {"max_position_embeddings": "read by LongRoPE alone"}
PLAIN = {**UNREAD, **LENGTH, "original_max_position_embeddings": "read by LongRoPE alone"}
LONGROPE = {
    **UNREAD,
    "rope_parameters.original_max_position_embeddings": "the configuration's own is written over it",
}
SHORT = {f"rope_parameters.short_factor.{i}": "of rows that are not longer than at first" for i in range(4)}
LONG = {f"rope_parameters.long_factor.{i}": "of rows that are longer than at first" for i in range(4)}
EXEMPT = {
    "default": PLAIN,
    "a part of a head is rotated": PLAIN,
    "longer than at first": {**LONGROPE, **SHORT},
    "not longer than at first": {**LONGROPE, **LONG},
    "explicit factors": {**LONGROPE, **SHORT, **LENGTH, "rope_parameters.factor": "attention_factor is given"},
}


@pytest.mark.parametrize("name", list(CASES))
def test_logits_equal_an_independent_forward_pass(name: str) -> None:
    config = FAMILY.tiny_config("phi3", **CASES[name])
    logits_comparison(reference_logits, config)(config, config)


@pytest.mark.parametrize("name", list(EXEMPT))
def test_every_number_matters(name: str) -> None:
    config = FAMILY.tiny_config("phi3", **CASES[name])
    assert_every_number_matters(config, logits_comparison(reference_logits, config), exempt=EXEMPT[name])


def test_dropout_in_training() -> None:
    """Of the three that the configuration has, transformers applies two; the embeddings' is 0 in all published."""
    for field, applied in (("resid_pdrop", True), ("attention_dropout", True), ("embd_pdrop", False)):
        model = build_model_of(FAMILY.tiny_config("phi3", **{field: 0.5})).train()
        with torch.no_grad():
            first, second = (model(torch.arange(3, 20)[None]).logits for _ in range(2))
        assert torch.equal(first, second) is not applied, field


def build_model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_parameter_counts_are_the_published_ones(preset: Any) -> None:
    with torch.device("meta"):
        model = build_model(ModelParams(model_name=preset.name, load_pretrained_weights=False))
    assert type(model).__name__ == "Phi3ForCausalLM"
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in model.parameters()) == preset.num_parameters


def test_phi4_turns_by_another_base() -> None:
    """torchtune's builder leaves it at 10,000."""
    assert PHI4_14B.config().rope_parameters["rope_theta"] == 250000.0


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if "short_factor" in preset.values["rope_parameters"]])
def test_longrope_as_built(preset: Any) -> None:
    """A model of this head width rotates by the published factors, and more strongly by 1.1902381."""
    rotary = Phi3RotaryEmbedding(preset.config())
    assert rotary.attention_scaling == pytest.approx(1.1902381, abs=1e-7)
    rope = preset.values["rope_parameters"]
    for length, factors in ((4096, rope["short_factor"]), (4097, rope["long_factor"])):
        cos, _ = rotary(torch.zeros(1), torch.tensor([[length - 1]]))
        angles = [(length - 1) * 10000.0 ** (-i / 48) / factors[i] for i in range(48)]
        expected = torch.tensor([math.cos(angle) * rotary.attention_scaling for angle in angles])
        torch.testing.assert_close(cos[0, 0, :48], expected, rtol=0, atol=2e-3)  # angles of 4,096 in float32


def test_a_preset_equals_a_published_file() -> None:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the published key-values are not here")
    published = json.loads((Path(root) / "model_meta/gguf_kv/Phi-3-mini-128k-instruct.json").read_text())
    config = PHI3_MINI_128K.config()
    rope = config.rope_parameters
    names = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "rope.freq_base": rope["rope_theta"],
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": config.sliding_window,
    }
    for name, value in names.items():
        assert float(published[f"phi3.{name}"]) == value, name
    assert int(published["tokenizer.ggml.bos_token_id"]) == config.bos_token_id
    assert int(published["tokenizer.ggml.eos_token_id"]) == config.eos_token_id
    assert int(published["tokenizer.ggml.padding_token_id"]) == config.pad_token_id
    for kind in ("short", "long"):
        digest = hashlib.sha256(struct.pack("<48f", *rope[f"{kind}_factor"])).hexdigest()
        assert digest == published[f"rope_factors_{kind}.weight"], kind


# https://huggingface.co/microsoft/phi-4/blob/main/config.json
PHI4_FILE: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 100257,
    "embd_pdrop": 0.0,
    "eos_token_id": 100265,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 17920,
    "max_position_embeddings": 16384,
    "model_type": "phi3",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "original_max_position_embeddings": 16384,
    "pad_token_id": 100349,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 100352,
}


def test_a_preset_is_what_transformers_reads_from_the_published_file() -> None:
    assert PHI4_14B.config().to_dict() == AutoConfig.for_model(**PHI4_FILE).to_dict()
