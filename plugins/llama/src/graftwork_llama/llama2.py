"""Llama 2 under torchtune's names, as transformers models with fresh weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.builders.torchtune_names import builders, config_of, fresh_model, lora_of
from graftwork_llama.presets import LLAMA2_7B, LLAMA2_13B, LLAMA2_70B

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel
    from transformers import PreTrainedModel

    from graftwork.builders.torchtune_names import LoraModule

llama2_7b, lora_llama2_7b, qlora_llama2_7b = builders(LLAMA2_7B, positional_dropout=True)
llama2_13b, lora_llama2_13b, qlora_llama2_13b = builders(LLAMA2_13B, positional_dropout=True)
llama2_70b, lora_llama2_70b, qlora_llama2_70b = builders(LLAMA2_70B, positional_dropout=True)


def llama2(  # noqa: PLR0913 (torchtune's signature)
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    intermediate_dim: int | None = None,
    norm_eps: float = 1e-5,
) -> PreTrainedModel:
    """A Llama 2 of any size with fresh weights; ``intermediate_dim`` is by default 8/3 of the width, rounded up."""
    return fresh_model(config_of("llama", {**locals(), "rope_base": 10_000.0}))


def lora_llama2(  # noqa: PLR0913 (torchtune's signature)
    lora_attn_modules: Sequence[LoraModule],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    *,
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    max_seq_len: int,
    intermediate_dim: int | None = None,
    attn_dropout: float = 0.0,
    norm_eps: float = 1e-5,
    lora_rank: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
) -> PeftModel:
    """As :func:`llama2`, with a LoRA on the modules named."""
    return lora_of("llama", {**locals(), "rope_base": 10_000.0})
