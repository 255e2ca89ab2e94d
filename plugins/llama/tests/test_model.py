"""The family against an independent forward pass, a published model, and published parameter counts."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from graftwork import ModelParams, build_model, build_tokenizer
from graftwork.builders.torchtune_names import fresh_model
from graftwork.registry import get_registry
from graftwork_llama.presets import LLAMA3_1_8B, PRESETS

TINY = get_registry().families["llama"].tiny
SCALED = {**LLAMA3_1_8B.values["rope_parameters"], "original_max_position_embeddings": 16}


def config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**{**TINY, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **changes})


def random_model(values: Any) -> Any:
    """With weights large enough that every number of the configuration shows in the logits."""
    torch.manual_seed(0)
    model = fresh_model(values).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.dim() == 1 else 0.0, 0.2)
    return model


# B batch, T tokens, D width, H heads, K key-value heads, E width of a head


def reference_logits(weights: dict[str, torch.Tensor], c: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, vocabulary] by the formulas of the Llama papers, written without transformers."""
    x = weights["model.embed_tokens.weight"][ids]  # [B, T, D]
    cos, sin = rotation(c, ids.shape[1])
    for layer in range(c.num_hidden_layers):
        w = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        x = x + attention(norm(x, w["input_layernorm.weight"], c.rms_norm_eps), w, c, cos, sin)
        x = x + swiglu(norm(x, w["post_attention_layernorm.weight"], c.rms_norm_eps), w)
    head = weights["model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"]
    return norm(x, weights["model.norm.weight"], c.rms_norm_eps) @ head.T


def norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def swiglu(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    return (F.silu(x @ w["mlp.gate_proj.weight"].T) * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def attention(
    x: torch.Tensor, w: dict[str, torch.Tensor], c: Any, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    batch, length, _ = x.shape
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    q, k, v = (
        (x @ w[f"self_attn.{part}_proj.weight"].T).view(batch, length, count, -1).transpose(1, 2)  # [B, H or K, T, E]
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (rotated(k, cos, sin), v))
    scores = rotated(q, cos, sin) @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [B, H, T, T]
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
    return mixed @ w["self_attn.o_proj.weight"].T


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Hugging Face's layout: the first half of a head are the real parts, the second the imaginary ones."""
    real, imaginary = x.chunk(2, -1)
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)


def rotation(c: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    rope, half = c.rope_parameters, c.hidden_size // c.num_attention_heads // 2
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


IDS = torch.arange(48).view(2, 24) * 37 % TINY["vocab_size"]
CHANGES: dict[str, dict[str, Any]] = {
    "rope_theta": {"rope_parameters": {**SCALED, "rope_theta": 20000.0}},
    "rope factor": {"rope_parameters": {**SCALED, "factor": 32.0}},
    "rope low_freq_factor": {"rope_parameters": {**SCALED, "low_freq_factor": 0.5}},
    "rope high_freq_factor": {"rope_parameters": {**SCALED, "high_freq_factor": 8.0}},
    "rope original length": {"rope_parameters": {**SCALED, "original_max_position_embeddings": 32}},
    "rope scaling left out": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "rms_norm_eps": {"rms_norm_eps": 1e-2},
    "hidden_act": {"hidden_act": "gelu"},
    "tie_word_embeddings": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize(
    "changes", [{}, {"rope_parameters": SCALED}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}]
)
def test_logits_equal_an_independent_forward_pass(changes: dict[str, Any]) -> None:
    model = random_model(config(**changes))
    with torch.no_grad():
        torch.testing.assert_close(
            model(IDS).logits, reference_logits(model.state_dict(), model.config, IDS), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", list(CHANGES))
def test_the_comparison_notices(name: str) -> None:
    """Each number matters: a model that differs from the reference in one of them is found out."""
    model = random_model(config(rope_parameters=SCALED))
    changed = random_model(config(**{"rope_parameters": SCALED, **CHANGES[name]}))
    changed.load_state_dict({k: v for k, v in model.state_dict().items() if k in changed.state_dict()}, strict=False)
    with torch.no_grad(), pytest.raises(AssertionError):
        torch.testing.assert_close(
            changed(IDS).logits, reference_logits(model.state_dict(), model.config, IDS), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_parameter_counts_are_the_published_ones(preset: Any) -> None:
    with torch.device("meta"):
        model = build_model(ModelParams(model_name=preset.name, load_pretrained_weights=False))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in model.parameters()) == preset.num_parameters


def test_a_published_model_says_what_it_should() -> None:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: stories260K is not here")
    folder = Path(root) / "weights/stories260K"
    expected = json.loads((folder / "expected_greedy.json").read_text())
    params = ModelParams(model_name=str(folder / "hf"))
    model, tokenizer = build_model(params), build_tokenizer(params)
    prompt = torch.tensor([expected["prompt_ids"]])
    ids = model.generate(
        prompt, do_sample=False, max_new_tokens=expected["max_new_tokens"], eos_token_id=None, pad_token_id=0
    )
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == expected["expected_text"]
