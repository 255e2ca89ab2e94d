"""Gemma 1, 2 and 3 against an independent forward pass, published counts and a published file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graftwork import ModelParams, build_model
from graftwork.registry import get_registry
from graftwork.testing import assert_every_number_matters, logits_comparison
from graftwork_gemma.presets import GEMMA_2B, PRESETS

from .reference import reference_logits

FAMILY = get_registry().families["gemma"]
LENGTH = "no formula has it: angles are computed for the positions there are"
MASK = "read only where the attention function makes the mask itself; no published one has it"
EXEMPT = {
    "gemma": {"max_position_embeddings": LENGTH, "use_bidirectional_attention": MASK},
    "gemma2": {"max_position_embeddings": LENGTH, "use_bidirectional_attention": MASK},
    "gemma3_text": {
        "max_position_embeddings": LENGTH,
        "attn_logit_softcapping": "transformers' Gemma 3 never applies it; no published one has it",
    },
}
CASES = [
    ("gemma", {}),
    ("gemma", {"attention_bias": True, "num_key_value_heads": 4}),
    ("gemma2", {}),
    ("gemma2", {"attention_bias": True, "layer_types": ["full_attention", "sliding_attention"]}),
    ("gemma3_text", {}),
    ("gemma3_text", {"attention_bias": True, "use_bidirectional_attention": True}),
    ("gemma3_text", {"final_logit_softcapping": 1.5, "rope_parameters": None}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_logits_equal_an_independent_forward_pass(kind: str, changes: dict[str, Any]) -> None:
    config = FAMILY.tiny_config(kind, **changes)
    logits_comparison(reference_logits, config)(config, config)


@pytest.mark.parametrize("kind", FAMILY.model_types)
def test_every_number_matters(kind: str) -> None:
    config = FAMILY.tiny_config(kind)
    assert_every_number_matters(config, logits_comparison(reference_logits, config), exempt=EXEMPT[kind])


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_the_pattern_of_layers_matters(kind: str) -> None:
    config = FAMILY.tiny_config(kind)
    other = FAMILY.tiny_config(kind, layer_types=config.layer_types[::-1])
    compare = logits_comparison(reference_logits, config)
    for pair in ((config, other), (other, config)):
        with pytest.raises(AssertionError, match="Tensor-likes are not close"):
            compare(*pair)


@pytest.mark.parametrize("kind", FAMILY.model_types)
def test_dropout_in_training(kind: str) -> None:
    for share in (0.0, 0.5):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILY.tiny_config(kind, attention_dropout=share)).train()
        with torch.no_grad():
            first, second = (model(torch.arange(3, 20)[None]).logits for _ in range(2))
            assert torch.equal(first, second) is (share == 0.0)
            assert torch.equal(model.eval()(torch.arange(3, 20)[None]).logits, model(torch.arange(3, 20)[None]).logits)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_parameter_counts_are_the_published_ones(preset: Any) -> None:
    with torch.device("meta"):
        model = build_model(ModelParams(model_name=preset.name, load_pretrained_weights=False))
    assert type(model).__name__ in FAMILY.architectures
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in model.parameters()) == preset.num_parameters


def test_the_text_decoders_are_what_the_published_models_have_beside_their_vision() -> None:
    """The totals that the Hub shows, less 416,866,032 of the vision tower and 1152 * (width + 1) of the projector."""
    published = {"gemma3_4b": 4_300_079_472, "gemma3_12b": 12_187_325_040, "gemma3_27b": 27_432_406_640}
    for preset in PRESETS:
        if preset.name in published:
            vision = 416_866_032 + 1152 * (preset.values["hidden_size"] + 1)
            assert preset.num_parameters == published[preset.name] - vision


def test_caps_and_scales_are_the_published_ones() -> None:
    """Where torchtune has the two caps of Gemma 2 swapped, and 27B's scores are not scaled by the width of a head."""
    found = {preset.name: preset.config() for preset in PRESETS}
    for name in ("gemma2_2b", "gemma2_9b", "gemma2_27b"):
        assert (found[name].attn_logit_softcapping, found[name].final_logit_softcapping) == (50.0, 30.0)
        assert found[name].layer_types[:3] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert [found[f"gemma2_{size}"].query_pre_attn_scalar for size in ("2b", "9b", "27b")] == [256, 256, 144]
    sizes = ("270m", "1b", "4b", "12b", "27b")
    assert [found[f"gemma3_{size}"].query_pre_attn_scalar for size in sizes] == [256, 256, 256, 256, 168]
    assert [found[f"gemma3_{size}"].sliding_window for size in sizes] == [512, 512, 1024, 1024, 1024]
    for size in sizes:
        config = found[f"gemma3_{size}"]
        assert [n for n, kind in enumerate(config.layer_types, 1) if kind == "full_attention"] == [
            *range(6, config.num_hidden_layers + 1, 6)
        ]
        assert config.rope_parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}
        assert config.rope_parameters["full_attention"]["rope_theta"] == 1_000_000.0
        assert config.rope_parameters["full_attention"].get("factor") == (8.0 if size in sizes[2:] else None)


@pytest.mark.parametrize("layers", [3, 8, 64])
@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset.model_type != "gemma"], ids=lambda p: p.name)
def test_more_layers_or_fewer_go_on_as_the_published_ones_do(preset: Any, layers: int) -> None:
    """Through the road of ``model.model_kwargs``, with nothing said of the kinds of layers."""
    from graftwork.builders.model_config import config_of_values

    config = config_of_values(preset.model_type, preset.values, {"num_hidden_layers": layers})
    every = 2 if preset.model_type == "gemma2" else 6
    assert config.num_hidden_layers == layers
    assert [kind == "full_attention" for kind in config.layer_types] == [
        number % every == 0 for number in range(1, layers + 1)
    ]


def test_a_preset_equals_a_published_file() -> None:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the published key-values are not here")
    published = json.loads((Path(root) / "model_meta/gguf_kv/gemma-2b-it.json").read_text())
    config = GEMMA_2B.config()
    names = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    for name, value in names.items():
        assert float(published[f"gemma.{name}"]) == value, name
    for role in ("bos", "eos", "padding"):
        token_id = getattr(config, f"{role.replace('padding', 'pad')}_token_id")
        assert int(published[f"tokenizer.ggml.{role}_token_id"]) == token_id


# config.json of https://huggingface.co/google/gemma-2-2b-it; text_config of that of gemma-3-4b-pt and gemma-3-27b-pt
STRETCHED = {"factor": 8.0, "rope_type": "linear"}
FILES: dict[str, dict[str, Any]] = {
    "gemma2_2b": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "initializer_range": 0.02,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "use_cache": True,
        "vocab_size": 256000,
    },
    "gemma3_4b": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": STRETCHED,
        "sliding_window": 1024,
    },
    "gemma3_27b": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": STRETCHED,
        "sliding_window": 1024,
    },
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_preset_is_what_transformers_reads_from_the_published_file(name: str) -> None:
    """Also what the shorter ones of these files leave to transformers' defaults."""
    preset = next(preset for preset in PRESETS if preset.name == name)
    assert preset.config().to_dict() == AutoConfig.for_model(**FILES[name]).to_dict()
