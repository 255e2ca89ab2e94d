"""Llama 3 under torchtune's names, as transformers models with fresh weights."""

from __future__ import annotations

from graftwork.builders.torchtune_names import SHAPE, builders, generic_builders
from graftwork_llama.presets import LLAMA3_8B, LLAMA3_70B

llama3_8b, lora_llama3_8b, qlora_llama3_8b = builders(LLAMA3_8B)
llama3_70b, lora_llama3_70b, qlora_llama3_70b = builders(LLAMA3_70B)
llama3, lora_llama3 = generic_builders(
    "llama3",
    "llama",
    required=(*SHAPE, "max_seq_len"),
    defaults={"attn_dropout": 0.0, "rope_base": 500_000, "intermediate_dim": None, "norm_eps": 1e-5},
)
