"""Llama 2 under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders, generic_builders
from graftwork.tokenizers.torchtune import torchtune_tokenizer
from graftwork_llama.presets import LLAMA2_7B, LLAMA2_13B, LLAMA2_70B, LLAMA2_MESSAGES, SHAPE

llama2_7b, lora_llama2_7b, qlora_llama2_7b = builders(LLAMA2_7B, positional_dropout=True)
llama2_13b, lora_llama2_13b, qlora_llama2_13b = builders(LLAMA2_13B, positional_dropout=True)
llama2_70b, lora_llama2_70b, qlora_llama2_70b = builders(LLAMA2_70B, positional_dropout=True)
llama2, lora_llama2 = generic_builders(
    "llama2", "llama", required=SHAPE, defaults={"attn_dropout": 0.0, "intermediate_dim": None, "norm_eps": 1e-5}
)
llama2_tokenizer = torchtune_tokenizer("llama2_tokenizer", LLAMA2_MESSAGES, family="llama")
