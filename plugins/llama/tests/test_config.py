"""``LLaMAConfig``: fairseq2's numbers for its architectures give the presets."""

from __future__ import annotations

from typing import Any

import pytest

from graftwork_llama.config import LLaMAConfig, LLaMARoPEScaleConfig
from graftwork_llama.presets import PRESETS

WIDE = {"ffn_inner_dim_multiplier": 1.3, "ffn_inner_dim_multiple_of": 4096}
LLAMA3 = {"vocab_size": 128_256, "num_key_value_heads": 8, "rope_theta": 500_000.0, "max_seq_len": 8192}
LLAMA3_8B = {**LLAMA3, "ffn_inner_dim_multiplier": 1.3, "ffn_inner_dim_multiple_of": 1024}
LONG = {"max_seq_len": 131_072, "use_scaled_rope": True}
SIZE_70B = {"model_dim": 8192, "num_layers": 80, "num_attn_heads": 64, "ffn_inner_dim": 8192 * 4}
SMALL = {**LLAMA3, **LONG, "tied_embeddings": True, "rope_scale": LLaMARoPEScaleConfig(factor=32.0)}
# As fairseq2 states them: by width, multiplier and rounding.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama2_7b": {"max_seq_len": 4096},
    "llama2_13b": {
        "max_seq_len": 4096,
        "model_dim": 5120,
        "num_layers": 40,
        "num_attn_heads": 40,
        "num_key_value_heads": 40,
        "ffn_inner_dim": 5120 * 4,
    },
    "llama2_70b": {**SIZE_70B, **WIDE, "max_seq_len": 4096, "num_key_value_heads": 8},
    "llama3_8b": LLAMA3_8B,
    "llama3_70b": {**LLAMA3, **SIZE_70B, **WIDE},
    "llama3_1_8b": {**LLAMA3_8B, **LONG},
    "llama3_1_70b": {**LLAMA3, **SIZE_70B, **WIDE, **LONG},
    "llama3_2_1b": {
        **SMALL,
        "model_dim": 2048,
        "ffn_inner_dim": 2048 * 4,
        "ffn_inner_dim_multiplier": 1.5,
        "num_layers": 16,
    },
    "llama3_2_3b": {
        **SMALL,
        "model_dim": 3072,
        "ffn_inner_dim": 3072 * 4,
        "num_attn_heads": 24,
        "num_layers": 28,
    },
}
TOKENS = {"bos_token_id", "eos_token_id"}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_architectures_are_the_presets(name: str) -> None:
    preset = next(preset for preset in PRESETS if preset.name == name)
    found, expected = LLaMAConfig(**ARCHITECTURES[name]).to_transformers().to_dict(), preset.config().to_dict()
    assert {key for key, value in expected.items() if found[key] != value} <= TOKENS


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_preset_can_be_said_in_it(preset: Any) -> None:
    config = preset.config()
    back = LLaMAConfig.from_transformers(config).to_transformers()
    assert {**back.to_dict(), **{key: getattr(config, key) for key in TOKENS}} == config.to_dict()


def test_the_defaults_are_those_of_the_first_llama() -> None:
    config = LLaMAConfig()
    assert (config.model_dim, config.max_seq_len, config.vocab_size, config.num_layers) == (4096, 2048, 32000, 32)
    assert (config.ffn_inner_dim, config.ffn_inner_dim_multiple_of, config.dropout_p) == (16384, 256, 0.0)
    assert vars(config.rope_scale) == {"factor": 8.0, "frequency_factors": (1.0, 4.0), "original_context_length": 8192}
    assert config.to_transformers().intermediate_size == 11008
