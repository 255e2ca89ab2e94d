"""Llama 3.1 under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders, generic_builders
from graftwork_llama.presets import LLAMA3_1_8B, LLAMA3_1_70B, LLAMA3_1_405B, LLAMA3_1_ANY

llama3_1_8b, lora_llama3_1_8b, qlora_llama3_1_8b = builders(LLAMA3_1_8B, latest=True)
llama3_1_70b, lora_llama3_1_70b, qlora_llama3_1_70b = builders(LLAMA3_1_70B, latest=True)
llama3_1_405b, lora_llama3_1_405b, qlora_llama3_1_405b = builders(LLAMA3_1_405B, latest=True)
llama3_1, lora_llama3_1 = generic_builders("llama3_1", "llama", **LLAMA3_1_ANY)
