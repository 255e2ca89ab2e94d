"""Mistral and Mixtral against an independent forward pass, published counts and published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from graftwork import ModelParams, build_model
from graftwork.registry import get_registry
from graftwork.testing import assert_every_number_matters, logits_comparison
from graftwork_mistral.presets import MISTRAL_CLASSIFIER_7B, MIXTRAL_8X7B, PRESETS

from .reference import reference_logits, reference_scores

FAMILIES = {name: get_registry().families[name] for name in ("mistral", "mixtral")}
LENGTH = {"max_position_embeddings": "no formula has it: angles are computed for the positions there are"}
EXEMPT = {
    "mistral": LENGTH,
    "mixtral": {
        **LENGTH,
        "output_router_logits": "whether the gate's logits are returned too",
        "router_aux_loss_coef": "only in the loss of training",
        "router_jitter_noise": "only in training",
    },
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 1, "head_dim": None, "num_key_value_heads": 4}),
    ("mistral", {"tie_word_embeddings": True}),
    ("mixtral", {}),
    ("mixtral", {"sliding_window": None, "num_experts_per_tok": 1}),
    ("mixtral", {"num_experts_per_tok": 4, "head_dim": None}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_logits_equal_an_independent_forward_pass(kind: str, changes: dict[str, Any]) -> None:
    config = FAMILIES[kind].tiny_config(kind, **changes)
    logits_comparison(reference_logits, config)(config, config)


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_every_number_matters(kind: str) -> None:
    config = FAMILIES[kind].tiny_config(kind)
    assert_every_number_matters(config, logits_comparison(reference_logits, config), exempt=EXEMPT[kind])


def test_a_classifier_equals_the_formulas() -> None:
    config = FAMILIES["mistral"].tiny_config("mistral", num_labels=3, pad_token_id=0)
    ids = torch.arange(1, 41).view(2, 20)
    compare = logits_comparison(reference_scores, config, input_ids=ids, auto_class=AutoModelForSequenceClassification)
    compare(config, config)
    other = FAMILIES["mistral"].tiny_config("mistral", num_labels=3, pad_token_id=0, sliding_window=7)
    for pair in ((config, other), (other, config)):
        with pytest.raises(AssertionError, match="not close"):
            compare(*pair)


@pytest.mark.parametrize("preset", [*PRESETS, MIXTRAL_8X7B], ids=lambda preset: preset.name)
def test_parameter_counts_are_the_published_ones(preset: Any) -> None:
    with torch.device("meta"):
        model = build_model(ModelParams(model_name=preset.name, load_pretrained_weights=False))
    kind = "SequenceClassification" if preset is MISTRAL_CLASSIFIER_7B else "CausalLM"
    assert type(model).__name__ == f"{preset.model_type.capitalize()}For{kind}"
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in model.parameters()) == preset.num_parameters


@pytest.mark.parametrize(
    ("name", "theta", "window", "vocab"),
    [
        ("mistral-7b-v0.1", 1e4, 4096, 32000),
        ("mistral-7b-v0.2", 1e6, None, 32000),
        ("mistral-7b-v0.3", 1e6, None, 32768),
        ("mistral-nemo-12b", 1e6, None, 131072),
        ("mixtral-8x7b", 1e6, None, 32000),
    ],
)
def test_what_changed_between_versions(name: str, theta: float, window: int | None, vocab: int) -> None:
    config = get_registry().presets[name].config()
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": theta}
    assert (config.sliding_window, config.vocab_size, config.head_dim) == (window, vocab, 128)
    assert config.rms_norm_eps == 1e-5
