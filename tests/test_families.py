"""What is true of every family that is shipped: packed equals padded, a LoRA by role, its presets, its size."""

from __future__ import annotations

import ast
import dataclasses
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from graftwork import PeftParams, attach_adapter
from graftwork.builders.torchtune_names import LORA_MODULES, fresh_model
from graftwork.data.batch import to_row
from graftwork.data.collators import Padded
from graftwork.data.samples import Sample
from graftwork.errors import UsageError
from graftwork.registry import get_registry
from graftwork.testing import random_weights
from graftwork_native import attention
from graftwork_native.trial import plan_forward

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork_native.forward import Forward

ROOT = Path(__file__).parent.parent
REGISTRY = get_registry()
FAMILIES = [family for family in REGISTRY.families.values() if family.model_types]
KINDS = [(family, kind) for family in FAMILIES for kind in family.model_types]
PRESETS = [(family, preset) for family in FAMILIES for preset in family.presets]
# What a family plugin may say in Python, its presets (data) aside.
LINES = 120

LENGTHS = (19, 5, 14, 2)
KEYWORDS = ("sliding_window", "softcap")
"""What a family may ask attention for."""
Result = tuple[float, dict[str, torch.Tensor]]


def named(case: Any) -> str:
    return case if isinstance(case, str) else case.name


each_kind = pytest.mark.parametrize(("family", "kind"), KINDS, ids=named)
each_preset = pytest.mark.parametrize(("family", "preset"), PRESETS, ids=named)


def tiny_model(family: Any, kind: str, **changes: Any) -> Any:
    """With weights large enough that nothing is nearly linear, on transformers' plain attention."""
    config = family.tiny_config(kind, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.load_state_dict(random_weights(config), strict=False)
    return model.train()


def samples(vocab_size: int) -> list[Sample]:
    """Random tokens, about half of them trained, and at least the last one."""
    generator = np.random.default_rng(0)
    found = []
    for length in LENGTHS:
        trained = generator.random(length) < 0.5
        trained[-1] = True
        found.append(Sample(generator.integers(0, vocab_size, length).astype(np.int32), trained, "test"))
    return found


def with_gradients(model: Any, loss: torch.Tensor) -> Result:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def padded(model: Any) -> Result:
    """transformers' own loss and mask on the padded batch."""
    batch = Padded(pad_token_id=0)(samples(model.config.vocab_size))
    return with_gradients(model, model(**batch).loss)


def packed(plan: Forward, **changes: Any) -> Result:
    row = dataclasses.replace(to_row(samples(plan.model.config.vocab_size)), **changes)
    return with_gradients(plan.model, plan.loss(row, 1.0 / row.num_labels))


def difference(found: Result, expected: Result) -> float:
    """The largest one: of the loss, and of each gradient as a part of its own largest entry."""
    assert found[1].keys() == expected[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    parts = [abs(found[0] / expected[0] - 1)]
    for name, gradient in expected[1].items():
        size = float(gradient.abs().max())
        # One that is zero but for rounding (a bias of keys, which softmax does not see) is measured by the largest.
        parts.append(float((found[1][name] - gradient).abs().max()) / (size if size > 1e-4 * largest else largest))
    return max(parts)


# Segment attention


@each_kind
def test_packed_is_padded_in_loss_and_every_gradient(family: Any, kind: str) -> None:
    assert family.segment_attention
    model = tiny_model(family, kind)
    expected = padded(model)
    plan = plan_forward(model, None, "segments")
    assert difference(packed(plan), expected) < 1e-4
    assert difference(packed(plan, segment_lengths=(sum(LENGTHS),)), expected) > 1e-2, "a leak would be seen"


@each_kind
def test_a_window_or_a_cap_taken_out_of_the_packed_side_is_seen(
    family: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, kind)
    expected = padded(model)
    plan = plan_forward(model, None, "segments")
    used: set[str] = set()

    def without(keyword: str | None) -> None:
        def lose(module: Any, kwargs: dict[str, Any]) -> None:
            used.update(name for name in KEYWORDS if kwargs.get(name) is not None)
            kwargs.pop(keyword, None)

        monkeypatch.setattr(attention, "refuse_unknown", lose)  # what is first to see them

    without(None)
    packed(plan)
    assert used == expected_keywords(model.config), "each number of the configuration reaches the attention"
    for keyword in sorted(used):
        without(keyword)
        assert difference(packed(plan), expected) > 1e-2, keyword


@each_kind
def test_a_cap_on_the_logits_is_kept(family: Any, kind: str) -> None:
    model = tiny_model(family, kind)
    capped = getattr(model.config, "final_logit_softcapping", None) is not None
    plan = plan_forward(model, None, "segments")
    assert plan.fused_head is not capped
    if capped:
        expected = packed(plan)
        assert difference(packed(dataclasses.replace(plan, fused_head=True)), expected) > 1e-2


def expected_keywords(config: Any) -> set[str]:
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    assert window is None or window < LENGTHS[0], "a tiny window is shorter than a sample"
    cap = getattr(config, "attn_logit_softcapping", None) if config.model_type != "gemma3_text" else None
    return {name for name, value in zip(KEYWORDS, (window, cap), strict=True) if value is not None}


def test_windows_and_caps_are_among_what_is_tested() -> None:
    """The tests above would be empty without."""
    found = [expected_keywords(family.tiny_config(kind)) for family, kind in KINDS]
    assert set(KEYWORDS) in found
    assert Counter(keyword for keywords in found for keyword in keywords)["sliding_window"] >= 4


# LoRA


@each_kind
def test_a_lora_by_role_goes_where_the_role_is(family: Any, kind: str) -> None:
    assert {*LORA_MODULES, "output"} <= family.lora_targets.keys(), "torchtune's names"
    assert set(family.default_lora_roles) <= family.lora_targets.keys()
    tied = family.tiny_config(kind).tie_word_embeddings
    for role, modules in family.lora_targets.items():
        roles = next((group for group in family.fused_lora_roles if role in group), (role,))
        if role == "output" and tied:
            with pytest.raises(UsageError, match="shares its weight with the embedding"):
                adapted_modules(family, kind, roles)
            continue
        found = adapted_modules(family, kind, roles)
        present = set(found) & set(modules)
        assert present == set(found) != set()
        layers = 1 if role == "output" else family.tiny_config(kind).num_hidden_layers
        assert set(found.values()) == {layers}, role


@each_kind
def test_the_default_lora_covers_every_layer(family: Any, kind: str) -> None:
    found = adapted_modules(family, kind, None)
    expected = {name for role in family.default_lora_roles for name in family.lora_targets[role]}
    assert set(found) == expected
    assert set(found.values()) == {family.tiny_config(kind).num_hidden_layers}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.fused_lora_roles], ids=named)
def test_a_part_of_a_fused_module_is_an_error_that_explains_it(family: Any) -> None:
    (group,) = family.fused_lora_roles
    for part in (group[:1], group[1:]):
        with pytest.raises(UsageError, match=rf"cannot be had: .* are one module, {family.lora_targets[part[0]][0]}"):
            adapted_modules(family, family.model_types[0], part)


def adapted_modules(family: Any, kind: str, roles: Any) -> Mapping[str, int]:
    """The last names of the modules that got a LoRA, and on how many of each there is one."""
    targets = None if roles is None else list(roles)
    model = attach_adapter(fresh_model(family.tiny_config(kind)), PeftParams(lora_target_modules=targets, lora_r=2))
    adapted = {name.split(".lora_")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    return Counter(name.rpartition(".")[2] for name in adapted)


# Presets


@each_preset
def test_a_preset_has_the_parameters_that_it_states(family: Any, preset: Any) -> None:
    assert preset.model_type in family.model_types
    with torch.device("meta"):
        model = fresh_model(preset.config())
    assert sum(weight.numel() for weight in model.parameters()) == preset.num_parameters
    assert type(model).__name__ in family.architectures


@each_preset
def test_a_preset_has_its_functions_under_torchtunes_names(family: Any, preset: Any) -> None:
    modules = [import_module(name) for name in family.components]
    found = [module for module in modules if hasattr(module, preset.name)]
    assert len(found) == 1
    assert all(callable(getattr(found[0], f"{kind}{preset.name}")) for kind in ("", "lora_", "qlora_"))


def test_names_are_unique() -> None:
    names = Counter(name.casefold() for _, preset in PRESETS for name in (preset.name, *preset.aliases))
    assert [name for name, count in names.items() if count > 1] == []
    hub_ids = Counter(hub_id.casefold() for _, preset in PRESETS for hub_id in preset.hub_ids)
    assert [hub_id for hub_id, count in hub_ids.items() if count > 1] == []
    assert not REGISTRY.families.clashes()
    assert not REGISTRY.presets.clashes()


def test_templates_that_families_name_are_there() -> None:
    templates = {family.chat_template for family in FAMILIES} | {preset.chat_template for _, preset in PRESETS}
    assert {name for name in templates if name is not None and name not in REGISTRY.chat_templates} == set()
    assert all(family.chat_template and family.stop_tokens for family in FAMILIES)


@each_kind
def test_a_tiny_configuration_is_tiny(family: Any, kind: str) -> None:
    config = family.tiny_config(kind)
    assert config.hidden_size <= 64
    assert config.intermediate_size <= 64
    assert config.num_hidden_layers >= 2, "layers of two kinds have room"


# Plugins


def family_plugins() -> list[Path]:
    """The source folders of the packages that declare families."""
    owners = {REGISTRY.families.owner(family.name).name for family in FAMILIES}
    folders = [path.parent for path in (ROOT / "plugins").glob("*/src/*/plugin.py") if path.parts[-4] in owners]
    assert len(folders) == len(owners)
    return sorted(folders)


@pytest.mark.parametrize("folder", family_plugins(), ids=lambda folder: folder.name)
def test_a_family_plugin_is_small(folder: Path) -> None:
    sizes = {
        str(path.relative_to(folder)): len(path.read_text(encoding="utf-8").splitlines())
        for path in folder.rglob("*.py")
        if path.name != "presets.py"
    }
    assert sum(sizes.values()) <= LINES, sizes


@pytest.mark.parametrize("folder", family_plugins(), ids=lambda folder: folder.name)
def test_a_family_plugin_uses_what_is_public(folder: Path) -> None:
    private = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("graftwork."):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                private += [f"{path.name}: {name}" for name in names if name.startswith("_")]
    assert private == []
