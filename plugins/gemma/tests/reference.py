"""Gemma 1, 2 and 3 by the formulas of their papers, in plain torch and without transformers' models.

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
    """Logits [B, T, vocabulary]. The embedding is scaled going in, and not where it is the head."""
    x = weights["model.embed_tokens.weight"][ids] * math.sqrt(c.hidden_size)  # [B, T, D]
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        w = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        x = block(x, w, c, layer)
    head = weights["model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"]
    logits = norm(x, weights["model.norm.weight"], c) @ head.T
    return capped(logits, getattr(c, "final_logit_softcapping", None))


def block(x: torch.Tensor, w: Weights, c: Any, layer: int) -> torch.Tensor:
    """Gemma 1 normalises what goes into each half of a block, Gemma 2 and 3 what comes out of it too."""
    if c.model_type == "gemma":
        x = x + attention(norm(x, w["input_layernorm.weight"], c), w, c, layer)
        return x + feed_forward(norm(x, w["post_attention_layernorm.weight"], c), w)
    mixed = attention(norm(x, w["input_layernorm.weight"], c), w, c, layer)
    x = x + norm(mixed, w["post_attention_layernorm.weight"], c)
    changed = feed_forward(norm(x, w["pre_feedforward_layernorm.weight"], c), w)
    return x + norm(changed, w["post_feedforward_layernorm.weight"], c)


def attention(x: torch.Tensor, w: Weights, c: Any, layer: int) -> torch.Tensor:
    batch, length, _ = x.shape
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    q = linear(x, w, "self_attn.q_proj", c.attention_bias).view(batch, length, heads, c.head_dim).transpose(1, 2)
    k = linear(x, w, "self_attn.k_proj", c.attention_bias).view(batch, length, kv_heads, c.head_dim).transpose(1, 2)
    v = linear(x, w, "self_attn.v_proj", c.attention_bias).view(batch, length, kv_heads, c.head_dim).transpose(1, 2)
    if c.model_type == "gemma3_text":
        q, k = norm(q, w["self_attn.q_norm.weight"], c), norm(k, w["self_attn.k_norm.weight"], c)
    cos, sin = rotation(c, layer, length)
    q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    k, v = k.repeat_interleave(heads // kv_heads, dim=1), v.repeat_interleave(heads // kv_heads, dim=1)
    divisor = c.head_dim if c.model_type == "gemma" else c.query_pre_attn_scalar
    scores = capped(q @ k.transpose(-1, -2) / math.sqrt(divisor), cap_of_scores(c))  # [B, H, T, T]
    scores = scores.masked_fill(~seen(c, layer, length), -math.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, heads * c.head_dim)
    return linear(mixed, w, "self_attn.o_proj", c.attention_bias)


def cap_of_scores(c: Any) -> float | None:
    return c.attn_logit_softcapping if c.model_type == "gemma2" else None


def seen(c: Any, layer: int, length: int) -> torch.Tensor:
    """[T, T], true where a token is seen: all before it, or the last ``sliding_window`` with itself."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]  # how far back
    local = c.model_type != "gemma" and c.layer_types[layer] == "sliding_attention"
    if c.model_type == "gemma3_text" and c.use_bidirectional_attention:
        return distance.abs() < c.sliding_window if local else torch.ones_like(distance, dtype=torch.bool)
    return (distance >= 0) & (distance < (c.sliding_window if local else length))


def rotation(c: Any, layer: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    rope = c.rope_parameters[c.layer_types[layer]] if c.model_type == "gemma3_text" else c.rope_parameters
    half = c.head_dim // 2
    frequencies = torch.tensor([rope["rope_theta"] ** (-i / half) for i in range(half)])
    if rope["rope_type"] == "linear":
        frequencies = frequencies / rope["factor"]
    angles = torch.arange(length)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Hugging Face's layout: the first half of a head are the real parts, the second the imaginary ones."""
    real, imaginary = x.chunk(2, -1)
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


def feed_forward(x: torch.Tensor, w: Weights) -> torch.Tensor:
    gate = F.gelu(x @ w["mlp.gate_proj.weight"].T, approximate="tanh")
    return (gate * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def norm(x: torch.Tensor, gain: torch.Tensor, c: Any) -> torch.Tensor:
    """The stored gain is what is added to one."""
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps) * (1 + gain)


def linear(x: torch.Tensor, w: Weights, name: str, bias: bool) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + (w[f"{name}.bias"] if bias else 0)


def capped(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)
