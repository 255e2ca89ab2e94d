"""Llama 3 under torchtune's names, as transformers models with fresh weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.builders.torchtune_names import builders, config_of, fresh_model, lora_of
from graftwork_llama.presets import LLAMA3_8B, LLAMA3_70B

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel
    from transformers import PreTrainedModel

    from graftwork.builders.torchtune_names import LoraModule

llama3_8b, lora_llama3_8b, qlora_llama3_8b = builders(LLAMA3_8B)
llama3_70b, lora_llama3_70b, qlora_llama3_70b = builders(LLAMA3_70B)


def llama3(  # noqa: PLR0913 (torchtune's signature)
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    max_seq_len: int,
    attn_dropout: float = 0.0,
    rope_base: int = 500_000,
    intermediate_dim: int | None = None,
    norm_eps: float = 1e-5,
) -> PreTrainedModel:
    """A Llama 3 of any size with fresh weights; ``intermediate_dim`` is by default 8/3 of the width, rounded up."""
    return fresh_model(config_of("llama", locals()))


def lora_llama3(  # noqa: PLR0913 (torchtune's signature)
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
    rope_base: float = 500_000.0,
    lora_rank: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
) -> PeftModel:
    """As :func:`llama3`, with a LoRA on the modules named."""
    return lora_of("llama", locals())
