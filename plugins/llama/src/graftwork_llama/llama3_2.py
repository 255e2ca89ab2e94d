"""Llama 3.2 under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders, generic_builders
from graftwork_llama.presets import LLAMA3_2_1B, LLAMA3_2_3B, LLAMA3_2_ANY

llama3_2_1b, lora_llama3_2_1b, qlora_llama3_2_1b = builders(LLAMA3_2_1B, latest=True)
llama3_2_3b, lora_llama3_2_3b, qlora_llama3_2_3b = builders(LLAMA3_2_3B, latest=True)
llama3_2, lora_llama3_2 = generic_builders("llama3_2", "llama", **LLAMA3_2_ANY)
