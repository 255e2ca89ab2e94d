"""Another number of layers: the kinds of layers that a configuration states go on as they do, or are asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from graftwork import ModelParams, build_model
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

WINDOWED = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "num_hidden_layers": 3}


def params(folder: Path, changes: dict[str, Any]) -> ModelParams:
    return ModelParams(model_name=str(folder), load_pretrained_weights=False, model_kwargs=changes)


def test_kinds_of_layers_fit_another_number_of_layers(toy_model: Any) -> None:
    """A folder states the kind of each layer, though the rule stands beside it."""
    folder = toy_model("qwen2", **WINDOWED)
    assert json.loads((folder / "config.json").read_text())["layer_types"] == ["full_attention"] + 2 * [
        "sliding_attention"
    ]
    model = build_model(params(folder, {"num_hidden_layers": 4}))
    assert model.config.layer_types == ["full_attention"] + 3 * ["sliding_attention"]
    assert model(input_ids=torch.arange(6)[None]).logits.shape == (1, 6, 64)


def test_kinds_of_layers_that_follow_no_rule_are_asked_for(toy_model: Any) -> None:
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    folder = toy_model("qwen2", **WINDOWED, layer_types=kinds)
    with pytest.raises(ModelError) as caught:
        build_model(params(folder, {"num_hidden_layers": 2}))
    assert str(caught.value) == (
        "model.model_kwargs: num_hidden_layers: 2 needs layer_types of as many: the 3 that are stated follow no rule "
        "that goes on; set layer_types too, a list of 2 of full_attention, sliding_attention"
    )
    both = {"num_hidden_layers": 2, "layer_types": kinds[:2]}
    assert build_model(params(folder, both)).config.layer_types == kinds[:2]
