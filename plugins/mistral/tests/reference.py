"""Mistral and Mixtral by the formulas of their papers, written without transformers.

B batch, T tokens, D width, H heads, K key and value heads, E width of a head, X experts. Weights have transformers'
names; those of the experts are stacked there, gate above up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    Weights = Mapping[str, torch.Tensor]


def reference_logits(weights: Weights, c: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, vocabulary]."""
    head = "model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
    return reference_states(weights, c, ids) @ weights[head].T


def reference_scores(weights: Weights, c: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a classifier says of each text [B, classes]: its head on the state of the last token."""
    return reference_states(weights, c, ids)[:, -1] @ weights["score.weight"].T


def reference_states(weights: Weights, c: Any, ids: torch.Tensor) -> torch.Tensor:
    """The normed last hidden states [B, T, D]."""
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(c.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        x = x + attention(rms_norm(x, w["input_layernorm.weight"], c.rms_norm_eps), w, c)
        h = rms_norm(x, w["post_attention_layernorm.weight"], c.rms_norm_eps)
        x = x + (mixture(h, w, c) if c.model_type == "mixtral" else feed_forward(h, w))
    return rms_norm(x, weights["model.norm.weight"], c.rms_norm_eps)


def rms_norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def feed_forward(x: torch.Tensor, w: Weights) -> torch.Tensor:
    gate, up = x @ w["mlp.gate_proj.weight"].T, x @ w["mlp.up_proj.weight"].T
    return (silu(gate) * up) @ w["mlp.down_proj.weight"].T


def mixture(x: torch.Tensor, w: Weights, c: Any) -> torch.Tensor:
    """Token by token: the experts with the largest gate logits, weighted by the softmax over those alone."""
    output = torch.zeros_like(x)
    for b, t in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(x.shape[1])).tolist():
        logits = w["mlp.gate.weight"] @ x[b, t]  # [X]
        chosen = sorted(range(c.num_local_experts), key=lambda expert: -float(logits[expert]))[: c.num_experts_per_tok]
        total = sum(math.exp(float(logits[expert])) for expert in chosen)
        for expert in chosen:
            gate, up = (w["mlp.experts.gate_up_proj"][expert] @ x[b, t]).chunk(2)
            share = math.exp(float(logits[expert])) / total
            output[b, t] += share * (w["mlp.experts.down_proj"][expert] @ (silu(gate) * up))
    return output


def attention(x: torch.Tensor, w: Weights, c: Any) -> torch.Tensor:
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    width = c.head_dim or c.hidden_size // heads
    q, k, v = (
        (x @ w[f"self_attn.{part}_proj.weight"].T).unflatten(-1, (count, width)).transpose(1, 2)  # [B, H or K, T, E]
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    base = c.rope_parameters["rope_theta"]
    q, k = rotated(q, base), rotated(k, base)
    rows = []
    for head in range(heads):
        group = head // (heads // kv_heads)
        scores = q[:, head] @ k[:, group].transpose(1, 2) / math.sqrt(width)  # [B, T, T]
        rows.append(hidden(scores, c.sliding_window).softmax(-1) @ v[:, group])
    return torch.cat(rows, -1) @ w["self_attn.o_proj.weight"].T


def hidden(scores: torch.Tensor, window: int | None) -> torch.Tensor:
    """A token sees itself and those before it; with a window, itself and the ``window`` - 1 before it."""
    places = torch.arange(scores.shape[-1])
    distance = places[:, None] - places
    seen = (distance >= 0) & (distance < (window or len(places)))
    return scores.masked_fill(~seen, -torch.inf)


def rotated(x: torch.Tensor, base: float) -> torch.Tensor:
    """Pairs (i, i + E/2) of a head turned by position times base^(-2i/E)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * torch.tensor([base ** (-i / half) for i in range(half)])
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
