"""Qwen2 and Qwen3 by the formulas of their reports, in plain torch and without transformers' models.

B batch, T tokens, D width, H heads, K key-value heads, E width of a head
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
        x = x + attention(norm(x, w["input_layernorm.weight"], c), w, c, layer)
        x = x + feed_forward(norm(x, w["post_attention_layernorm.weight"], c), w)
    head = weights["model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"]
    return norm(x, weights["model.norm.weight"], c) @ head.T


def attention(x: torch.Tensor, w: Weights, c: Any, layer: int) -> torch.Tensor:
    """Qwen2 has a bias at queries, keys and values; Qwen3 normalises the first two, and has one at all four or none."""
    batch, length, _ = x.shape
    third = c.model_type == "qwen3"
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    width = c.head_dim if third else c.hidden_size // heads
    into, out = (c.attention_bias, c.attention_bias) if third else (True, False)
    q = linear(x, w, "self_attn.q_proj", into).view(batch, length, heads, width).transpose(1, 2)
    k = linear(x, w, "self_attn.k_proj", into).view(batch, length, kv_heads, width).transpose(1, 2)
    v = linear(x, w, "self_attn.v_proj", into).view(batch, length, kv_heads, width).transpose(1, 2)
    if third:
        q, k = norm(q, w["self_attn.q_norm.weight"], c), norm(k, w["self_attn.k_norm.weight"], c)
    q, k = rotated(q, c.rope_parameters["rope_theta"]), rotated(k, c.rope_parameters["rope_theta"])
    k, v = k.repeat_interleave(heads // kv_heads, dim=1), v.repeat_interleave(heads // kv_heads, dim=1)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(width)).masked_fill(~seen(c, layer, length), -math.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, heads * width)
    return linear(mixed, w, "self_attn.o_proj", out)


def seen(c: Any, layer: int, length: int) -> torch.Tensor:
    """[T, T], true where a token is seen: all before it, or the last ``sliding_window`` with itself."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    local = c.layer_types[layer] == "sliding_attention"
    return (distance >= 0) & (distance < (c.sliding_window if local else length))


def rotated(x: torch.Tensor, base: float) -> torch.Tensor:
    """Hugging Face's layout: the first half of a head are the real parts, the second the imaginary ones."""
    real, imaginary = x.chunk(2, -1)
    half = real.shape[-1]
    frequencies = torch.tensor([base ** (-i / half) for i in range(half)])
    angles = torch.arange(x.shape[-2])[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


def feed_forward(x: torch.Tensor, w: Weights) -> torch.Tensor:
    return (F.silu(x @ w["mlp.gate_proj.weight"].T) * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def norm(x: torch.Tensor, gain: torch.Tensor, c: Any) -> torch.Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps) * gain


def linear(x: torch.Tensor, w: Weights, name: str, bias: bool) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + (w[f"{name}.bias"] if bias else 0)
