"""Phi-3 by the formulas of its paper and of LongRoPE's, in plain torch and without transformers' models.

B batch, T tokens, D width, H heads, K key-value heads, E width of a head, R rotated part of it
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
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        w = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        x = x + attention(norm(x, w["input_layernorm.weight"], c), w, c)
        x = x + feed_forward(norm(x, w["post_attention_layernorm.weight"], c), w)
    head = weights["model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"]
    return norm(x, weights["model.norm.weight"], c) @ head.T


def attention(x: torch.Tensor, w: Weights, c: Any) -> torch.Tensor:
    """Queries, keys and values come out of one product, in this order."""
    batch, length, _ = x.shape
    heads, kv_heads, width = c.num_attention_heads, c.num_key_value_heads, c.hidden_size // c.num_attention_heads
    parts = (x @ w["self_attn.qkv_proj.weight"].T).split([heads * width, kv_heads * width, kv_heads * width], dim=-1)
    q, k, v = (part.view(batch, length, -1, width).transpose(1, 2) for part in parts)  # [B, H or K, T, E]
    cos, sin = rotation(c, width, length)
    q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    seen = (distance >= 0) & (distance < (c.sliding_window or length))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(width)).masked_fill(~seen, -math.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, heads * width)
    return mixed @ w["self_attn.o_proj.weight"].T


def rotation(c: Any, width: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """LongRoPE: each frequency has its own divisor, another where the row is longer than the model first was; and
    what is rotated grows with the logarithm of the stretch."""
    rope = c.rope_parameters
    half = int(width * rope.get("partial_rotary_factor", 1.0)) // 2
    divisors, scale = [1.0] * half, 1.0
    if rope["rope_type"] == "longrope":
        first = rope["original_max_position_embeddings"]
        divisors = rope["long_factor" if length > first else "short_factor"]
        stretch = rope.get("factor") or c.max_position_embeddings / first
        scale = math.sqrt(1 + math.log(stretch) / math.log(first)) if stretch > 1 else 1.0
        scale = rope.get("attention_factor") or scale
    frequencies = torch.tensor([rope["rope_theta"] ** (-i / half) / divisors[i] for i in range(half)])
    angles = torch.arange(length)[:, None] * frequencies
    return angles.cos() * scale, angles.sin() * scale


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The first R of a head turn, in Hugging Face's layout: real parts, then imaginary ones; the rest stays."""
    half = cos.shape[-1]
    real, imaginary, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin, rest], -1)


def feed_forward(x: torch.Tensor, w: Weights) -> torch.Tensor:
    gate, up = (x @ w["mlp.gate_up_proj.weight"].T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ w["mlp.down_proj.weight"].T


def norm(x: torch.Tensor, gain: torch.Tensor, c: Any) -> torch.Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps) * gain
