"""Gemma 1 under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders, generic_builders
from graftwork.tokenizers.torchtune import torchtune_tokenizer
from graftwork_gemma.presets import GEMMA_2B, GEMMA_7B, GEMMA_MESSAGES

SHAPE = ("vocab_size", "num_layers", "num_heads", "head_dim", "num_kv_heads", "embed_dim")
DECODER = (*SHAPE, "intermediate_dim", "max_seq_len")

gemma_2b, lora_gemma_2b, qlora_gemma_2b = builders(GEMMA_2B, lora_output=False)
gemma_7b, lora_gemma_7b, qlora_gemma_7b = builders(GEMMA_7B, lora_output=False)
gemma, lora_gemma = generic_builders(
    "gemma",
    {"gemma": {"norm_embeddings": True}},
    required=DECODER,
    defaults={"attn_dropout": 0.0, "norm_eps": 1e-6, "rope_base": 10_000, "norm_embeddings": True},
    lora_output=False,
)
gemma_tokenizer = torchtune_tokenizer("gemma_tokenizer", GEMMA_MESSAGES, family="gemma")
