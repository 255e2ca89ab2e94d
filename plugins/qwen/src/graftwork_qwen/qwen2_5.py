"""Qwen2.5 under torchtune's names, as transformers models with fresh weights: ``qwen2_5_7b_base``, ..."""

from graftwork.builders.torchtune_names import sized_builders
from graftwork_qwen.presets import PRESETS

globals().update(sized_builders(PRESETS, "qwen2_5_", latest=True))
