"""Which modules of a model a LoRA goes onto."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from graftwork.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graftwork.specs import ModelFamily

_ALL = "all-linear"
_GROUPS = {"attention": ("q_proj", "k_proj", "v_proj", "output_proj")}
"""Roles that stand for several others, in every family that does not say otherwise."""
REWARD_HEAD = "score"
"""The head of transformers' decoders that judge, which have no output layer."""
_ATTENTION = ("attn", "attention")
"""What the name of a module around attention's projections contains in transformers, of whatever family."""


def resolve_lora_targets(
    family: ModelFamily, names: Sequence[str] | Literal["all-linear"] | None, model: nn.Module
) -> list[str]:
    """The module names for PEFT from role names (torchtune's too), module names or ``all-linear``.

    None means the family's default roles, or ``all-linear`` where it has none. Raises :class:`UsageError` for a
    name that is no module of this model.
    """
    wanted = names if names is not None else (family.default_lora_roles or _ALL)
    if isinstance(wanted, str):
        wanted = [wanted]
    _refuse_part_of_fused(family, wanted)
    found: dict[str, None] = {}
    for name in wanted:
        found.update(dict.fromkeys(_modules_of(family, name, model)))
    _refuse_tied(found, model)
    if not found:
        raise UsageError("peft.lora_target_modules: no linear module in this model, and none is named")
    return list(found)


def _modules_of(family: ModelFamily, name: str, model: nn.Module) -> Sequence[str]:
    if name == _ALL:
        return all_linear(model)
    if name in family.lora_targets or name not in (*_GROUPS, "mlp"):
        return _role(family, name, model)
    if not family.lora_targets:
        return _by_structure(name, model) or _role(family, name, model)
    parts = [module for role in _GROUPS.get(name, ()) for module in family.lora_targets.get(role, ())]
    present = [module for module in parts if _present(model, module)]
    return present or _role(family, name, model)


def _by_structure(role: str, model: nn.Module) -> list[str]:
    """Attention's projections, or the other linear modules of the layers (``mlp``), where no family names them."""
    inner = {path for path in _inner_linear(model) if any(part.isdigit() for part in path.split("."))}
    attention = {path for path in inner if _in_attention(path)}
    return shortest(model, attention if role == "attention" else inner - attention) if attention else []


def _in_attention(path: str) -> bool:
    return any(word in part for part in path.casefold().split(".") for word in _ATTENTION)


def _inner_linear(model: nn.Module) -> set[str]:
    return set(linear_modules(model)) - {_output_layer(model) or REWARD_HEAD}


def all_linear(model: nn.Module) -> list[str]:
    """Every linear module except the output layer, or the head of a reward model, which is trained whole: by its last
    name where that says enough, else by its path.
    """
    return shortest(model, _inner_linear(model))


def shortest(model: nn.Module, chosen: set[str]) -> list[str]:
    """The modules at the paths ``chosen``, by last name where no other module has it, else by path."""
    others = {_leaf(name) for name, _ in model.named_modules() if name not in chosen}
    return sorted({name if _leaf(name) in others else _leaf(name) for name in chosen})


def linear_modules(model: nn.Module) -> list[str]:
    """Dot paths of the modules that a LoRA can go onto."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def check_modules(model: nn.Module, names: Iterable[str], field: str, known: Iterable[str]) -> None:
    """Raises :class:`UsageError` for a name that ends no module's dot path. ``known`` are suggestions."""
    for name in names:
        if not _present(model, name):
            raise UsageError(f"{field}: {name!r} is no module of this model: {did_you_mean(name, known)}")


def module_leaves(model: nn.Module) -> list[str]:
    """The last names of all modules with weights of their own."""
    return sorted(
        {_leaf(name) for name, module in model.named_modules() if name and any(True for _ in module.parameters(False))}
    )


def _role(family: ModelFamily, name: str, model: nn.Module) -> Sequence[str]:
    modules = [module for module in family.lora_targets.get(name, (name,)) if _present(model, module)]
    if not modules:
        known = {*family.lora_targets, *_GROUPS, _ALL, *map(_leaf, linear_modules(model))}
        raise UsageError(
            f"peft.lora_target_modules: {name!r} is no module and no role of this model (family {family.name}): "
            f"{did_you_mean(name, known, limit=16)}"
        )
    if name not in family.lora_targets and all(any(part.children()) for part in _named(model, name)):
        linear = {_leaf(path) for path in linear_modules(model)}
        raise UsageError(
            f"peft.lora_target_modules: {name!r} is no layer of this model (family {family.name}) but holds others: "
            f"name linear ones ({', '.join(sorted(linear))}), or stacked weights in peft.lora_target_parameters"
        )
    return modules


def _refuse_part_of_fused(family: ModelFamily, names: Sequence[str]) -> None:
    """Where one module fills several roles, a LoRA for a part of them would silently be one for all."""
    for group in family.fused_lora_roles:
        asked = [role for role in group if role in names]
        missing = [role for role in group if role not in names]
        if asked and missing:
            modules = ", ".join(family.lora_targets[group[0]])
            raise UsageError(
                f"peft.lora_target_modules: {', '.join(asked)} without {', '.join(missing)} cannot be had: in family "
                f"{family.name} {', '.join(group)} are one module, {modules}; name all of them, or none"
            )


def _refuse_tied(names: Iterable[str], model: Any) -> None:
    """A LoRA on an output layer that is the embedding too would, once merged, change the embedding."""
    path = _output_layer(model)
    if path is None or not any(path == name or path.endswith(f".{name}") for name in names):
        return
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        raise UsageError(
            f"peft.lora_target_modules: {path!r} shares its weight with the embedding (tie_word_embeddings), so a "
            "LoRA on it cannot be merged: leave it out"
        )


def _present(model: nn.Module, name: str) -> bool:
    return bool(_named(model, name))


def _named(model: nn.Module, name: str) -> list[nn.Module]:
    return [module for path, module in model.named_modules() if path == name or path.endswith(f".{name}")]


def _output_layer(model: Any) -> str | None:
    getter = getattr(model, "get_output_embeddings", None)
    output = getter() if getter else None
    return next((name for name, module in model.named_modules() if module is output), None)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
