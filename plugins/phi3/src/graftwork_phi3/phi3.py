"""Phi-3 under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders, generic_builders
from graftwork.tokenizers.torchtune import torchtune_tokenizer
from graftwork_phi3.presets import PHI3_5_MINI, PHI3_MEDIUM_4K, PHI3_MESSAGES, PHI3_MINI, PHI3_MINI_128K

phi3_mini, lora_phi3_mini, qlora_phi3_mini = builders(PHI3_MINI)
phi3_mini_128k, lora_phi3_mini_128k, qlora_phi3_mini_128k = builders(PHI3_MINI_128K)
phi3_5_mini, lora_phi3_5_mini, qlora_phi3_5_mini = builders(PHI3_5_MINI)
phi3_medium_4k, lora_phi3_medium_4k, qlora_phi3_medium_4k = builders(PHI3_MEDIUM_4K)
phi3, lora_phi3 = generic_builders("phi3", "phi3", bos_token_id=None, eos_token_id=None, pad_token_id=None)
phi3_mini_tokenizer = torchtune_tokenizer("phi3_mini_tokenizer", PHI3_MESSAGES, family="phi3")
