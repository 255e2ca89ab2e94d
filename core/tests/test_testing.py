"""The harness for families finds what does not hear: a reference, a model, an exemption that is no longer true."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, GPT2Config, LlamaConfig, Phi3Config, PretrainedConfig

from graftwork.testing import (
    NOT_IN_LOGITS,
    assert_every_number_matters,
    logits_comparison,
    numeric_fields,
    random_weights,
)

CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
    rope_parameters={"rope_type": "default", "rope_theta": 100.0},
)
EXEMPT = {
    "max_position_embeddings": "a length, no part of a formula",
    "pretraining_tp": "how the original was spread over devices",
}


def reference(weights: Any, c: Any, ids: torch.Tensor, *, theta: float | None = None) -> torch.Tensor:
    """A Llama of one layer; ``theta`` makes it deaf to the configuration's."""
    w = {name.rpartition("layers.0.")[2]: value for name, value in weights.items()}
    x = w["model.embed_tokens.weight"][ids]
    h = norm(x, w["input_layernorm.weight"], c.rms_norm_eps)
    heads, kv_heads, half = c.num_attention_heads, c.num_key_value_heads, c.head_dim // 2
    q, k, v = ((h @ w[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, c.head_dim)) for name in "qkv")
    base = theta or c.rope_parameters["rope_theta"]
    angles = torch.arange(ids.shape[1])[:, None] * base ** (-torch.arange(half) / half)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    q, k = (
        torch.cat([(z := torch.complex(*part.chunk(2, -1)) * turn).real, z.imag], -1).transpose(1, 2) for part in (q, k)
    )
    k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v.transpose(1, 2)))
    scores = q @ k.mT / c.head_dim**0.5
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ w["self_attn.o_proj.weight"].T
    h = norm(x, w["post_attention_layernorm.weight"], c.rms_norm_eps)
    h = F.silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)
    head = w["model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"]
    return norm(x + h @ w["mlp.down_proj.weight"].T, w["model.norm.weight"], c.rms_norm_eps) @ head.T


def norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain


def test_every_number_is_found() -> None:
    found = numeric_fields(CONFIG)
    assert found["rope_parameters.rope_theta"] == 100.0
    assert found["tie_word_embeddings"] is False
    assert found["pad_token_id"] is None
    assert found["head_dim"] == 8
    assert not {"output_hidden_states", "hidden_act", "rope_parameters.rope_type", "id2label.0"} & found.keys()


def test_numbers_in_lists_count_one_by_one() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0], "rope_theta": 10.0}
    size = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    found = numeric_fields(Phi3Config(**size, rope_parameters=rope))
    assert found["rope_parameters.long_factor.1"] == 3.0
    assert found["sliding_window"] is None


def test_a_reference_that_reads_everything_holds() -> None:
    assert_every_number_matters(CONFIG, logits_comparison(reference, CONFIG), exempt=EXEMPT)


def test_a_reference_that_is_deaf_to_one_number_is_found_by_its_name() -> None:
    def deaf(weights: Any, c: Any, ids: torch.Tensor) -> torch.Tensor:
        return reference(weights, c, ids, theta=100.0)

    with pytest.raises(
        AssertionError, match=r"1 of 20 .*\nrope_parameters.rope_theta \(100.0 -> 150.0\): the reference does not read"
    ):
        assert_every_number_matters(CONFIG, logits_comparison(deaf, CONFIG), exempt=EXEMPT)


def test_a_reference_with_another_rope_base_is_wrong_from_the_start() -> None:
    def wrong(weights: Any, c: Any, ids: torch.Tensor) -> torch.Tensor:
        return reference(weights, c, ids, theta=101.0)

    with pytest.raises(AssertionError, match="not close"):
        assert_every_number_matters(CONFIG, logits_comparison(wrong, CONFIG), exempt=EXEMPT)


def test_a_model_that_is_deaf_is_found() -> None:
    compare = logits_comparison(reference, CONFIG)

    def with_one_base(built: PretrainedConfig, described: PretrainedConfig) -> None:
        compare(LlamaConfig(**{**built.to_dict(), "rope_parameters": CONFIG.rope_parameters}), described)

    with pytest.raises(AssertionError, match=r"rope_theta \(100.0 -> 150.0\): the model is the same with it"):
        assert_every_number_matters(CONFIG, with_one_base, exempt=EXEMPT)


def test_a_change_too_small_to_see_is_found_and_can_be_chosen() -> None:
    compare = logits_comparison(reference, CONFIG)
    with pytest.raises(AssertionError, match=r"rms_norm_eps \(1e-06 -> 1.001e-06\): the model is the same with it"):
        assert_every_number_matters(CONFIG, compare, exempt=EXEMPT, changes={"rms_norm_eps": 1.001e-6})


@pytest.mark.parametrize(
    ("exempt", "message"),
    [
        ({"rms_norm_eps": "why not"}, "rms_norm_eps .*: exempt, but the comparison sees it"),
        ({"vocab_size": "why not"}, "vocab_size .*: exempt, but no model is built with it"),
        ({"max_position_embeddings": ""}, "max_position_embeddings: exempt without a reason"),
        ({"sliding_window": "none here"}, "sliding_window: no numeric field of LlamaConfig"),
    ],
)
def test_an_exemption_has_to_be_true(exempt: dict[str, str], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_every_number_matters(CONFIG, logits_comparison(reference, CONFIG), exempt={**EXEMPT, **exempt})


def test_random_weights_leave_a_tied_head_out() -> None:
    weights = random_weights(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=8, n_positions=8))
    assert "lm_head.weight" not in weights
    assert (
        abs(float(weights["transformer.h.0.ln_1.bias"].mean()))
        < 0.5
        < float(weights["transformer.h.0.ln_1.weight"].mean())
    )
    config = LlamaConfig(**{**CONFIG.to_dict(), "num_labels": 3})
    assert random_weights(config, AutoModelForSequenceClassification)["score.weight"].shape == (3, 16)


def test_what_needs_no_exemption_says_why() -> None:
    assert all(NOT_IN_LOGITS.values())
