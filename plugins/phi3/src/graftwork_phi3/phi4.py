"""Phi-4 under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders
from graftwork_phi3.presets import PHI4_14B

phi4_14b, lora_phi4_14b, qlora_phi4_14b = builders(PHI4_14B, latest=True)
