"""The published sizes of Llama 2, 3, 3.1 and 3.2, as data.

Numbers: ``config.json`` of the models on the Hub (``hub_ids``), and ``params.json`` of Meta's own release
(https://github.com/meta-llama/llama-models). Parameter counts are those of the published weights.
"""

from __future__ import annotations

from typing import Any

from graftwork.specs import Preset

_LLAMA2 = {
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _scaled(factor: float) -> dict[str, Any]:
    """Llama 3 with the frequencies of long wavelengths stretched: 8,192 positions become 131,072."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {**_LLAMA3, "max_position_embeddings": 131072, "rope_parameters": rope}


def _shape(width: int, hidden: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
    }


LLAMA2_7B = Preset(
    name="llama2_7b",
    aliases=("llama-2-7b",),
    model_type="llama",
    values={**_LLAMA2, **_shape(4096, 11008, 32, 32, 32)},
    num_parameters=6_738_415_616,
    hub_ids=("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
    chat_template="llama2",
)
LLAMA2_13B = Preset(
    name="llama2_13b",
    aliases=("llama-2-13b",),
    model_type="llama",
    values={**_LLAMA2, **_shape(5120, 13824, 40, 40, 40)},
    num_parameters=13_015_864_320,
    hub_ids=("meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf"),
    chat_template="llama2",
)
LLAMA2_70B = Preset(
    name="llama2_70b",
    aliases=("llama-2-70b",),
    model_type="llama",
    values={**_LLAMA2, **_shape(8192, 28672, 80, 64, 8)},
    num_parameters=68_976_648_192,
    hub_ids=("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"),
    chat_template="llama2",
)

LLAMA3_8B = Preset(
    name="llama3_8b",
    aliases=("llama-3-8b",),
    model_type="llama",
    values={**_LLAMA3, **_shape(4096, 14336, 32, 32, 8)},
    num_parameters=8_030_261_248,
    hub_ids=("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
    chat_template="llama3-instruct",
)
LLAMA3_70B = Preset(
    name="llama3_70b",
    aliases=("llama-3-70b",),
    model_type="llama",
    values={**_LLAMA3, **_shape(8192, 28672, 80, 64, 8)},
    num_parameters=70_553_706_496,
    hub_ids=("meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct"),
    chat_template="llama3-instruct",
)

LLAMA3_1_8B = Preset(
    name="llama3_1_8b",
    aliases=("llama3.1_8b", "llama-3.1-8b"),
    model_type="llama",
    values={**_scaled(8.0), **_shape(4096, 14336, 32, 32, 8)},
    num_parameters=8_030_261_248,
    hub_ids=("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
    chat_template="llama3-instruct",
)
LLAMA3_1_70B = Preset(
    name="llama3_1_70b",
    aliases=("llama3.1_70b", "llama-3.1-70b"),
    model_type="llama",
    values={**_scaled(8.0), **_shape(8192, 28672, 80, 64, 8)},
    num_parameters=70_553_706_496,
    hub_ids=("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct"),
    chat_template="llama3-instruct",
)
LLAMA3_1_405B = Preset(
    name="llama3_1_405b",
    aliases=("llama3.1_405b", "llama-3.1-405b"),
    model_type="llama",
    values={**_scaled(8.0), **_shape(16384, 53248, 126, 128, 8)},
    num_parameters=405_853_388_800,
    hub_ids=("meta-llama/Llama-3.1-405B", "meta-llama/Llama-3.1-405B-Instruct"),
    chat_template="llama3-instruct",
)

LLAMA3_2_1B = Preset(
    name="llama3_2_1b",
    aliases=("llama3.2_1b", "llama-3.2-1b"),
    model_type="llama",
    values={**_scaled(32.0), **_shape(2048, 8192, 16, 32, 8), "tie_word_embeddings": True},
    num_parameters=1_235_814_400,
    hub_ids=("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
    chat_template="llama3-instruct",
)
LLAMA3_2_3B = Preset(
    name="llama3_2_3b",
    aliases=("llama3.2_3b", "llama-3.2-3b"),
    model_type="llama",
    values={**_scaled(32.0), **_shape(3072, 8192, 28, 24, 8), "tie_word_embeddings": True},
    num_parameters=3_212_749_824,
    hub_ids=("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
    chat_template="llama3-instruct",
)

PRESETS = (
    LLAMA2_7B,
    LLAMA2_13B,
    LLAMA2_70B,
    LLAMA3_8B,
    LLAMA3_70B,
    LLAMA3_1_8B,
    LLAMA3_1_70B,
    LLAMA3_1_405B,
    LLAMA3_2_1B,
    LLAMA3_2_3B,
)
