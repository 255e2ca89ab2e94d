"""``freeze_layers``: parts of a model that stay as they are."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from graftwork.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from graftwork.specs import ModelFamily

logger = logging.getLogger("graftwork.model")

_GLOB = frozenset("*?[")


def freeze_layers(model: nn.Module, layers: Sequence[str], family: ModelFamily) -> None:
    """Takes the gradient off every parameter under ``layers`` and logs what is trained and what is not.

    A layer is a module's dot path, a glob over dot paths (``model.layers.[0-3]``), a single module name as it
    stands in the tree (``embed_tokens``), or one of the family's aliases. Raises :class:`UsageError` for a
    layer that matches nothing.
    """
    if not layers:
        return
    for layer in layers:
        for module in _matching(model, layer, family):
            module.requires_grad_(False)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    logger.info("freeze_layers %s: %s parameters trained, %s frozen", ", ".join(layers), f"{trained:,}", f"{frozen:,}")


def _matching(model: nn.Module, layer: str, family: ModelFamily) -> list[nn.Module]:
    pattern = family.freeze_aliases.get(layer, layer)
    modules = {name: module for name, module in model.named_modules() if name}
    found = [module for name, module in modules.items() if _matches(name, pattern)]
    if not found:
        raise UsageError(
            f"model.freeze_layers: {layer!r} is no module of this model: "
            f"{did_you_mean(layer, [*_suggestions(modules), *family.freeze_aliases])}"
        )
    return found


def _matches(name: str, pattern: str) -> bool:
    if _GLOB & set(pattern):
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


def _suggestions(modules: dict[str, nn.Module]) -> list[str]:
    """Dot paths, without what lies inside the numbered layers after the first."""
    return [name for name in modules if not any(part.isdigit() and part != "0" for part in name.split("."))]
