"""Llama under fairseq2's names."""

from graftwork.builders import fairseq2_names
from graftwork_llama.presets import FAIRSEQ2_DEFAULTS

LLaMARoPEScaleConfig = fairseq2_names.RoPEScaleConfig
LLaMAConfig = fairseq2_names.config_class("LLaMAConfig", "llama", FAIRSEQ2_DEFAULTS, rms_norm_eps=1e-5)
