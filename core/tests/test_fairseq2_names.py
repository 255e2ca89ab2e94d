"""Configurations under fairseq2's names, of a family as a plugin declares it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoConfig

from graftwork.builders.fairseq2_names import RoPEScaleConfig, config_class, ffn_width
from graftwork.errors import ModelError

DEFAULTS: dict[str, Any] = {
    "model_dim": 64,
    "max_seq_len": 128,
    "vocab_size": 100,
    "pad_idx": None,
    "tied_embeddings": False,
    "num_layers": 2,
    "num_attn_heads": 4,
    "num_key_value_heads": 2,
    "ffn_inner_dim": 256,
    "ffn_inner_dim_scale": 2 / 3,
    "ffn_inner_dim_multiplier": 1.0,
    "ffn_inner_dim_multiple_of": 32,
    "rope_theta": 10_000,
    "use_scaled_rope": False,
    "rope_scale": RoPEScaleConfig(),
    "dropout_p": 0.0,
    "init_std": None,
}
Toy = config_class("ToyConfig", "llama", DEFAULTS, rms_norm_eps=1e-5)


def test_the_class_has_the_fields_and_defaults() -> None:
    assert vars(Toy()) == {**DEFAULTS, "stated": {}}
    assert repr(Toy(model_dim=8)).startswith("ToyConfig(model_dim=8, max_seq_len=128,")
    first = Toy()
    first.rope_scale.factor = 32.0
    assert Toy().rope_scale.factor == 8.0, "each has its own"


def test_to_transformers() -> None:
    config = Toy(tied_embeddings=True, pad_idx=3, rope_theta=500_000).to_transformers()
    assert type(config).__name__ == "LlamaConfig"
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (64, 2, 2)
    assert (config.tie_word_embeddings, config.pad_token_id, config.rms_norm_eps) == (True, 3, 1e-5)
    assert config.intermediate_size == 192
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500_000.0}


def test_stretched_frequencies_there_and_back() -> None:
    scale = RoPEScaleConfig(factor=32.0, frequency_factors=(0.5, 2.0), original_context_length=64)
    config = Toy(use_scaled_rope=True, rope_scale=scale).to_transformers()
    assert config.rope_parameters == {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 32.0,
        "low_freq_factor": 0.5,
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 64,
    }
    back = Toy.from_transformers(config)
    assert (back.use_scaled_rope, back.rope_scale) == (True, scale)
    assert back.to_transformers().to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("inner", "multiplier", "multiple", "width"),
    [  # the published widths of Llama 7B, 2 70B, 3 8B, 3.2 1B and 3.2 3B
        (4096 * 4, 1.0, 256, 11008),
        (8192 * 4, 1.3, 4096, 28672),
        (4096 * 4, 1.3, 1024, 14336),
        (2048 * 4, 1.5, 256, 8192),
        (3072 * 4, 1.0, 256, 8192),
    ],
)
def test_the_width_of_the_feed_forward_layers(inner: int, multiplier: float, multiple: int, width: int) -> None:
    values = {"ffn_inner_dim": inner, "ffn_inner_dim_scale": 2 / 3, "ffn_inner_dim_multiplier": multiplier}
    assert ffn_width({**values, "ffn_inner_dim_multiple_of": multiple}) == width


def test_what_has_no_field_is_kept() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    values = {**sizes, "rms_norm_eps": 0.5, "attention_bias": True, "eos_token_id": [7, 8], "head_dim": 8}
    config = AutoConfig.for_model("llama", **values)
    kept = Toy.from_transformers(config)
    assert kept.stated == {"rms_norm_eps": 0.5, "attention_bias": True, "eos_token_id": [7, 8], "head_dim": 8}
    assert kept.to_transformers().to_dict() == config.to_dict()
    assert replace(kept, num_layers=3).to_transformers().rms_norm_eps == 0.5
    assert Toy.from_transformers(Toy().to_transformers()).stated == {}


def test_what_cannot_be_said_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"ToyConfig: dropout_p=0.1 is between layers, .* set it to 0"):
        Toy(dropout_p=0.1).to_transformers()
    with pytest.raises(ModelError, match="ToyConfig is of model_type 'llama', and this is 'qwen2'"):
        Toy.from_transformers(AutoConfig.for_model("qwen2"))
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ModelError, match="ToyConfig cannot say rope_type 'linear'"):
        Toy.from_transformers(AutoConfig.for_model("llama", rope_parameters=linear))
    with pytest.raises(ValueError, match="ToyConfig: no rule says what beam_size is in transformers"):
        config_class("ToyConfig", "llama", {"beam_size": 2})
