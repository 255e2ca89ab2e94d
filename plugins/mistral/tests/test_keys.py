"""The key maps of Mistral's own files: what ``params.json`` of the releases says becomes the preset, and goes back."""

from __future__ import annotations

from typing import Any

import pytest

from graftwork.registry import get_registry

SIZE_7B = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "vocab_size": 32000,
}
# params.json of the releases.
PARAMS: dict[str, dict[str, Any]] = {
    "mistral_7b": {**SIZE_7B, "sliding_window": 4096},
    "mistral_7b_v0_2": {**SIZE_7B, "rope_theta": 1000000.0},
    "mistral_7b_v0_3": {**SIZE_7B, "vocab_size": 32768, "rope_theta": 1000000.0},
    "mistral_nemo_12b": {
        **SIZE_7B,
        "dim": 5120,
        "n_layers": 40,
        "vocab_size": 131072,
        "rope_theta": 1000000.0,
        "max_seq_len": 131072,
    },
    "mixtral_8x7b": {**SIZE_7B, "moe": {"num_experts_per_tok": 2, "num_experts": 8}},
}


def key_map(name: str) -> Any:
    return get_registry().family_of_preset(name).key_maps["mistral"]()


@pytest.mark.parametrize("name", list(PARAMS))
def test_params_json_of_a_release_is_the_preset(name: str) -> None:
    preset = get_registry().presets[name]
    values = key_map(name).to_config(PARAMS[name])
    assert values == {"tie_word_embeddings": False, **preset.values, "model_type": preset.model_type}


@pytest.mark.parametrize("name", list(PARAMS))
def test_a_preset_comes_back_from_params_json(name: str) -> None:
    preset = get_registry().presets[name]
    params = key_map(name).to_params(preset.config().to_dict())
    assert key_map(name).to_config(params) == key_map(name).to_config(PARAMS[name])
    said = {**PARAMS[name], "rope_theta": preset.values["rope_parameters"]["rope_theta"]}
    assert {"max_seq_len": said.get("max_seq_len"), **params} == {"max_seq_len": None, **said}


def test_each_map_takes_its_own() -> None:
    for name, params in PARAMS.items():
        assert key_map(name).fits(params)
    assert not key_map("mistral_7b").fits(PARAMS["mixtral_8x7b"])
    assert not key_map("mixtral_8x7b").fits(PARAMS["mistral_7b"])
    assert not key_map("mistral_7b").fits({"dim": 4096, "multiple_of": 256})


def test_the_names_of_experts() -> None:
    found = key_map("mixtral_8x7b").to_hf("layers.3.feed_forward.experts.5.w2.weight")
    assert found is not None
    assert found[0] == "model.layers.3.block_sparse_moe.experts.5.w2.weight"
