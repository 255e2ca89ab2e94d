"""Qwen2, Qwen2.5 and Qwen3 against an independent forward pass and published counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graftwork import ModelParams, build_model
from graftwork.registry import get_registry
from graftwork.testing import assert_every_number_matters, logits_comparison
from graftwork_qwen.presets import PRESETS

from .reference import reference_logits

FAMILY = get_registry().families["qwen"]
EXEMPT = {
    "max_position_embeddings": "no formula has it: angles are computed for the positions there are",
    "max_window_layers": "read where layer_types is not given, see below",
}
WIDE = {"use_sliding_window": False, "sliding_window": None}
CASES = [
    ("qwen2", {}),
    ("qwen2", WIDE),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("qwen3", {}),
    ("qwen3", WIDE),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_logits_equal_an_independent_forward_pass(kind: str, changes: dict[str, Any]) -> None:
    config = FAMILY.tiny_config(kind, **changes)
    logits_comparison(reference_logits, config)(config, config)


@pytest.mark.parametrize("kind", FAMILY.model_types)
def test_every_number_matters(kind: str) -> None:
    config = FAMILY.tiny_config(kind)
    assert config.layer_types == ["full_attention", "sliding_attention"], "the window begins at max_window_layers"
    assert_every_number_matters(config, logits_comparison(reference_logits, config), exempt=EXEMPT)


@pytest.mark.parametrize("kind", FAMILY.model_types)
@pytest.mark.parametrize("changes", [WIDE, {"max_window_layers": 0}, {"max_window_layers": 2}])
def test_the_pattern_of_layers_matters(kind: str, changes: dict[str, Any]) -> None:
    config, other = FAMILY.tiny_config(kind), FAMILY.tiny_config(kind, **changes)
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


def test_what_differs_between_base_and_chat_models() -> None:
    found = {preset.name: preset.config() for preset in PRESETS}
    for size, epsilon in (("1_5b", 1e-6), ("7b", 1e-6), ("14b", 1e-5), ("32b", 1e-5), ("72b", 1e-5)):
        base, chat = found[f"qwen2_5_{size}_base"], found[f"qwen2_5_{size}_instruct"]
        assert (base.rms_norm_eps, chat.rms_norm_eps) == (epsilon, 1e-6)
        assert (base.max_position_embeddings, chat.max_position_embeddings) == (131072, 32768)
        assert (base.eos_token_id, chat.eos_token_id) == (151643, 151645)
    for size in ("0_6b", "1_7b", "4b", "8b", "14b"):
        base, chat = found[f"qwen3_{size}_base"], found[f"qwen3_{size}_instruct"]
        assert (base.max_position_embeddings, chat.max_position_embeddings) == (32768, 40960)
        assert base.head_dim == chat.head_dim == 128
    assert {config.rope_parameters["rope_theta"] for config in found.values()} == {1e6}
    tied = {name for name, config in found.items() if config.tie_word_embeddings}
    assert {name.split("b")[0] for name in tied} == {
        *("qwen2_0_5", "qwen2_1_5", "qwen2_5_0_5", "qwen2_5_1_5", "qwen2_5_3", "qwen3_0_6", "qwen3_1_7", "qwen3_4")
    }


# https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json and that of Qwen2-72B
FILES: dict[str, dict[str, Any]] = {
    "qwen3_8b_instruct": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "qwen2_72b_base": {
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 8192,
        "initializer_range": 0.02,
        "intermediate_size": 29568,
        "max_position_embeddings": 131072,
        "max_window_layers": 80,
        "model_type": "qwen2",
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
}


@pytest.mark.parametrize("name", list(FILES))
def test_a_preset_is_what_transformers_reads_from_the_published_file(name: str) -> None:
    preset = next(preset for preset in PRESETS if preset.name == name)
    read = AutoConfig.for_model(**FILES[name]).to_dict()
    # The presets leave max_window_layers out, which is read only with use_sliding_window.
    assert {**preset.config().to_dict(), "max_window_layers": read["max_window_layers"]} == read
