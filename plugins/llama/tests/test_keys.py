"""The key map of Meta's files: what ``params.json`` of the releases says becomes the preset, and goes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from graftwork.registry import get_registry
from graftwork_llama.presets import PRESETS

FAMILY = get_registry().families["llama"]
LLAMA3 = {"vocab_size": 128256, "norm_eps": 1e-5, "rope_theta": 500000.0, "n_kv_heads": 8}
SIZE_70B = {"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096}
# params.json of the releases.
PARAMS: dict[str, dict[str, Any]] = {
    "llama2_7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-5, "vocab_size": -1},
    "llama2_70b": {**SIZE_70B, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "vocab_size": -1},
    "code_llama2_7b": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "multiple_of": 256,
        "ffn_dim_multiplier": 1.0,
        "norm_eps": 1e-5,
        "rope_theta": 1000000,
    },
    "code_llama2_34b": {
        "dim": 8192,
        "n_layers": 48,
        "n_heads": 64,
        "n_kv_heads": 8,
        "multiple_of": 256,
        "ffn_dim_multiplier": 1.0,
        "norm_eps": 1e-5,
        "rope_theta": 1000000,
    },
    "llama3_8b": {
        **LLAMA3,
        "dim": 4096,
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 1024,
        "n_heads": 32,
        "n_layers": 32,
    },
    "llama3_1_8b": {
        **LLAMA3,
        "dim": 4096,
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 1024,
        "n_heads": 32,
        "n_layers": 32,
        "use_scaled_rope": True,
    },
    "llama3_1_405b": {
        **LLAMA3,
        "dim": 16384,
        "ffn_dim_multiplier": 1.2,
        "multiple_of": 4096,
        "n_heads": 128,
        "n_layers": 126,
        "use_scaled_rope": True,
    },
    "llama3_2_1b": {
        **LLAMA3,
        "dim": 2048,
        "ffn_dim_multiplier": 1.5,
        "multiple_of": 256,
        "n_heads": 32,
        "n_layers": 16,
        "use_scaled_rope": True,
    },
    "llama3_2_3b": {
        **LLAMA3,
        "dim": 3072,
        "ffn_dim_multiplier": 1.0,
        "multiple_of": 256,
        "n_heads": 24,
        "n_layers": 28,
        "use_scaled_rope": True,
    },
}


@pytest.mark.parametrize("name", list(PARAMS))
def test_params_json_of_a_release_is_the_preset(name: str) -> None:
    preset = next(preset for preset in PRESETS if preset.name == name)
    values = FAMILY.key_maps["meta"]().to_config(PARAMS[name])
    # Code Llama's and Llama 2's files leave the size of the vocabulary to the weights.
    assert {"vocab_size": preset.values["vocab_size"], **values} == {**_full(preset), "model_type": "llama"}


def _full(preset: Any) -> dict[str, Any]:
    return {"tie_word_embeddings": False, **preset.values}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_comes_back_from_params_json(preset: Any) -> None:
    key_map = FAMILY.key_maps["meta"]()
    params = key_map.to_params(preset.config().to_dict())
    assert key_map.to_config(params) == {**_full(preset), "model_type": "llama"}
    assert params.keys() <= {*PARAMS["llama3_1_8b"]}


def test_an_unpublished_size_comes_back_too() -> None:
    key_map = FAMILY.key_maps["meta"]()
    rope = {**_full(PRESETS[-1])["rope_parameters"], "factor": 4.0}
    config = FAMILY.tiny_config("llama", rope_parameters=rope, tie_word_embeddings=True, max_position_embeddings=9999)
    values = key_map.to_config(key_map.to_params(config.to_dict()))
    back = FAMILY.tiny_config(values.pop("model_type"), **values)
    assert back.to_dict() == config.to_dict()


def test_every_parameter_has_a_name_there_and_comes_back() -> None:
    key_map = FAMILY.key_maps["meta"]()
    with torch.device("meta"):
        names = set(AutoModelForCausalLM.from_config(FAMILY.tiny_config("llama")).state_dict())
    theirs = {key_map.to_theirs(name)[0] for name in names}
    assert {key_map.to_hf(name)[0] for name in theirs} == names
    assert {"tok_embeddings.weight", "layers.1.attention.wq.weight", "output.weight"} <= theirs


@pytest.mark.parametrize(("name", "dimension"), [("llama2_7b", 1), ("llama3_8b", 0)])
def test_how_parts_split_the_embeddings(name: str, dimension: int) -> None:
    preset = next(preset for preset in PRESETS if preset.name == name)
    found = FAMILY.key_maps["meta"]().to_hf("tok_embeddings.weight")
    assert found is not None
    assert found[1].split_dimension(preset.values) == dimension
