"""Llama 3 under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders, generic_builders
from graftwork.tokenizers.torchtune import torchtune_tokenizer
from graftwork_llama.presets import LLAMA3_8B, LLAMA3_70B, LLAMA3_DEFAULTS, LLAMA3_MESSAGES, SHAPE

llama3_8b, lora_llama3_8b, qlora_llama3_8b = builders(LLAMA3_8B)
llama3_70b, lora_llama3_70b, qlora_llama3_70b = builders(LLAMA3_70B)
llama3, lora_llama3 = generic_builders("llama3", "llama", required=SHAPE, defaults=LLAMA3_DEFAULTS)
llama3_tokenizer = torchtune_tokenizer("llama3_tokenizer", LLAMA3_MESSAGES, family="llama")
