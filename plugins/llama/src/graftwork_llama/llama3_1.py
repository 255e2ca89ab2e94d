"""Llama 3.1 under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders, generic_builders
from graftwork_llama.presets import LLAMA3_1_8B, LLAMA3_1_70B, LLAMA3_1_405B, LLAMA3_DEFAULTS, ROPE, SHAPE

llama3_1_8b, lora_llama3_1_8b, qlora_llama3_1_8b = builders(LLAMA3_1_8B)
llama3_1_70b, lora_llama3_1_70b, qlora_llama3_1_70b = builders(LLAMA3_1_70B)
llama3_1_405b, lora_llama3_1_405b, qlora_llama3_1_405b = builders(LLAMA3_1_405B)
llama3_1, lora_llama3_1 = generic_builders(
    "llama3_1", "llama", required=SHAPE, defaults={**LLAMA3_DEFAULTS, "scale_factor": 8}, rope_parameters=ROPE
)
