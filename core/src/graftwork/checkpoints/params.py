"""Folders with a ``params.json`` and no ``config.json``: whose they are, and what their ``config.json`` would say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.checkpoints.formats import open_checkpoint
from graftwork.checkpoints.huggingface import read_json
from graftwork.errors import ModelError, UsageError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.checkpoints.formats import Checkpoint
    from graftwork.checkpoints.keymap import KeyMap
    from graftwork.specs import ModelFamily


def config_of_params(path: Path, family: str | None = None) -> dict[str, Any]:
    """The values of ``config.json`` for a folder that has ``params.json`` instead. Reads headers, and a tied head."""
    from graftwork.checkpoints.mapped import config_values

    checkpoint = open_checkpoint(path)
    return config_values(checkpoint, key_map_of(checkpoint, family)[1])


def key_map_of(checkpoint: Checkpoint, family: str | None = None) -> tuple[ModelFamily, KeyMap]:
    """The family that a checkpoint with ``params.json`` is of, and its key map; ``family`` chooses.

    Raises :class:`ModelError` where no family can be it, :class:`UsageError` where several could.
    """
    families = get_registry().families
    if family is not None:
        return families[family], map_of_family(families[family], checkpoint.format, checkpoint.path)
    if model_type := _stated_type(checkpoint.path):
        stated = get_registry().family_for(model_type, ())
        return stated, map_of_family(stated, checkpoint.format, checkpoint.path)
    if not checkpoint.values:
        raise ModelError(
            f"model {checkpoint.path}: there is no params.json beside the weights, so the architecture is unknown"
        )
    mapped = [families[name] for name in families if checkpoint.format in families[name].key_maps]
    maps = [(each, each.key_maps[checkpoint.format]()) for each in mapped]
    fitting = [(each, key_map) for each, key_map in maps if key_map.fits(checkpoint.values)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(each.name for each, _ in fitting or maps) or "none that is installed"
    if not fitting:
        raise ModelError(
            f"model {checkpoint.path}: its params.json is of no family that reads the {checkpoint.format} format "
            f"({names}): say which it is with model.family (graft convert: --family)"
        )
    raise UsageError(
        f"model {checkpoint.path}: its params.json could be of several families ({names}): say which with model.family "
        "(graft convert: --family)"
    )


def _stated_type(path: Path) -> str | None:
    """The model type in a ``config.json`` that lies beside ``params.json``."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    return str(read_json(file)["model_type"]) if file.is_file() and "model_type" in read_json(file) else None


def map_of_family(family: ModelFamily, format_name: str, path: Path) -> KeyMap:
    """The key map of a family for a format. Raises :class:`UsageError` that says which formats it has."""
    if format_name in family.key_maps:
        return family.key_maps[format_name]()
    has = ", ".join(sorted(family.key_maps))
    reason = f"family {family.name} has key maps for {has} only" if has else f"family {family.name} has no key maps"
    raise UsageError(f"model {path}: {reason}, so nothing says what its weights are called in the {format_name} format")
