"""Llama by the formulas of its papers, written without transformers.

B batch, T tokens, D width, H heads, K key and value heads, E width of a head. Weights have transformers' names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping

    Weights = Mapping[str, torch.Tensor]


def reference_logits(weights: Weights, c: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, vocabulary]."""
    x = weights["model.embed_tokens.weight"][ids]  # [B, T, D]
    cos, sin = rotation(c, ids.shape[1])
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        x = x + attention(norm(x, w["input_layernorm.weight"], c.rms_norm_eps), w, c, cos, sin)
        x = x + swiglu(norm(x, w["post_attention_layernorm.weight"], c.rms_norm_eps), w)
    head = weights["model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"]
    return norm(x, weights["model.norm.weight"], c.rms_norm_eps) @ head.T


def norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def linear(x: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    """With the bias that only some derived models have."""
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def swiglu(x: torch.Tensor, w: Weights) -> torch.Tensor:
    return linear(F.silu(linear(x, w, "mlp.gate_proj")) * linear(x, w, "mlp.up_proj"), w, "mlp.down_proj")


def attention(x: torch.Tensor, w: Weights, c: Any, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    batch, length, _ = x.shape
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    q, k, v = (
        linear(x, w, f"self_attn.{part}_proj").view(batch, length, count, c.head_dim).transpose(1, 2)  # [B, H|K, T, E]
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (rotated(k, cos, sin), v))
    scores = rotated(q, cos, sin) @ k.transpose(-1, -2) / math.sqrt(c.head_dim)  # [B, H, T, T]
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
    return linear(mixed, w, "self_attn.o_proj")


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Hugging Face's layout: the first half of a head are the real parts, the second the imaginary ones."""
    real, imaginary = x.chunk(2, -1)
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


def rotation(c: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    rope, half = c.rope_parameters, c.head_dim // 2
    frequencies = torch.tensor([rope["rope_theta"] ** (-i / half) for i in range(half)])
    if rope["rope_type"] == "llama3":
        frequencies = torch.tensor([stretched(float(f), rope) for f in frequencies])
    angles = torch.arange(length)[:, None] * frequencies
    return angles.cos(), angles.sin()


def stretched(frequency: float, rope: dict[str, Any]) -> float:
    """Llama 3.1: long waves are slowed by ``factor``, short ones kept, those between mixed."""
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    return kept * frequency + (1 - kept) * frequency / rope["factor"]
