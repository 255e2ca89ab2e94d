"""The family against an independent forward pass, a published model, and published parameter counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork import ModelParams, build_model, build_tokenizer
from graftwork.registry import get_registry
from graftwork.testing import assert_every_number_matters, logits_comparison
from graftwork_llama.presets import PRESETS, ROPE

from .reference import reference_logits

FAMILY = get_registry().families["llama"]
# Frequencies are mixed where a wave turns between 1 and 4 times in the original length.
SCALED = {**ROPE, "rope_theta": 1000.0, "original_max_position_embeddings": 16}
EXEMPT = {
    "max_position_embeddings": "no formula has it: angles are computed for the positions there are",
    "pretraining_tp": "how the original's products were split over devices; transformers no longer reads it",
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_parameters": SCALED},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4, "head_dim": 12},
        {"attention_bias": True, "mlp_bias": True},
    ],
)
def test_logits_equal_an_independent_forward_pass(changes: dict[str, Any]) -> None:
    config = FAMILY.tiny_config("llama", **changes)
    logits_comparison(reference_logits, config)(config, config)


@pytest.mark.parametrize("rope", [None, SCALED], ids=["plain", "stretched"])
def test_every_number_matters(rope: dict[str, Any] | None) -> None:
    config = FAMILY.tiny_config("llama", rope_parameters=rope)
    assert_every_number_matters(config, logits_comparison(reference_logits, config), exempt=EXEMPT)


@pytest.mark.parametrize(
    "change",
    [{"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}, {"hidden_act": "gelu"}],
    ids=["scaling left out", "activation"],
)
def test_what_is_no_number_matters_too(change: dict[str, Any]) -> None:
    config = FAMILY.tiny_config("llama", rope_parameters=SCALED)
    other = FAMILY.tiny_config("llama", **{"rope_parameters": SCALED, **change})
    with pytest.raises(AssertionError, match="not close"):
        logits_comparison(reference_logits, config)(other, config)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_parameter_counts_are_the_published_ones(preset: Any) -> None:
    with torch.device("meta"):
        model = build_model(ModelParams(model_name=preset.name, load_pretrained_weights=False))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in model.parameters()) == preset.num_parameters


def test_a_published_model_says_what_it_should() -> None:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: stories260K is not here")
    folder = Path(root) / "weights/stories260K"
    expected = json.loads((folder / "expected_greedy.json").read_text())
    params = ModelParams(model_name=str(folder / "hf"))
    model, tokenizer = build_model(params), build_tokenizer(params)
    prompt = torch.tensor([expected["prompt_ids"]])
    ids = model.generate(
        prompt, do_sample=False, max_new_tokens=expected["max_new_tokens"], eos_token_id=None, pad_token_id=0
    )
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == expected["expected_text"]


@pytest.mark.parametrize(
    "preset", [preset for preset in PRESETS if "code" in preset.name], ids=lambda preset: preset.name
)
def test_code_llama_has_a_longer_context_and_another_base(preset: Any) -> None:
    config = preset.config()
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert config.max_position_embeddings == 16384
    assert config.vocab_size == (32000 if "34b" in preset.name else 32016)


def test_llama_3_3_is_the_architecture_of_3_1() -> None:
    presets = get_registry().presets
    assert presets["llama-3.3-70b"] is presets["llama3_1_70b"]
    assert "meta-llama/Llama-3.3-70B-Instruct" in presets["llama3_3_70b"].hub_ids


def test_a_published_files_numbers_are_the_presets() -> None:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the published key-values are not here")
    published = json.loads((Path(root) / "model_meta/gguf_kv/Meta-Llama-3-8B-Instruct.json").read_text())
    config = get_registry().presets["llama3_8b"].config()
    names = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    assert {name: float(published[f"llama.{name}"]) for name in names} == pytest.approx(names)
    assert int(published["tokenizer.ggml.bos_token_id"]) == config.bos_token_id
