"""The role attention is there in every family, and is its four projections, or the modules that they are fused into."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from graftwork.adapters import resolve_lora_targets
from graftwork.registry import get_registry

CASES = [
    (family.name, model_type)
    for family in get_registry().families.values()
    for model_type in family.model_types
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (family.tiny or model_type in family.tiny_by_type)
]


@pytest.mark.parametrize(("name", "model_type"), CASES)
def test_attention_is_every_projection_of_it(name: str, model_type: str) -> None:
    family = get_registry().families[name]
    config = AutoConfig.for_model(model_type, **{**family.tiny, **family.tiny_by_type.get(model_type, {})})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "attn" in path}
    expected = {path.rpartition(".")[2] for path in linear}
    assert len(expected) in (2, 4)
    assert set(resolve_lora_targets(family, ["attention"], model)) == expected


def test_there_are_families_to_try() -> None:
    assert {"llama", "gemma", "phi3", "mistral", "qwen"} <= {name for name, _ in CASES}
