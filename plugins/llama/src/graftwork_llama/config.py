"""Llama under fairseq2's names."""

from graftwork.builders.fairseq2_names import RoPEScaleConfig as LLaMARoPEScaleConfig
from graftwork.builders.fairseq2_names import config_class
from graftwork_llama.presets import FAIRSEQ2_DEFAULTS

LLaMAConfig = config_class(
    "LLaMAConfig", "llama", {**FAIRSEQ2_DEFAULTS, "rope_scale": LLaMARoPEScaleConfig()}, rms_norm_eps=1e-5
)
