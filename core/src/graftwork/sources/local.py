"""Folders on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from graftwork.errors import ModelError


def expanded(name: str | Path) -> Path:
    """The absolute path that ``name`` is; ``~`` is the home folder. Raises :class:`ModelError` for nobody's home."""
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError as error:
        raise ModelError(f"{name}: there is no such home folder; write the whole path, from / on") from error


def folder(name: str) -> Path:
    """The absolute folder that ``name`` points to; ``~`` is the home folder. Raises :class:`ModelError`."""
    path = expanded(name)
    if path.is_file():
        raise ModelError(f"model {name}: this is a file; give the folder that holds config.json and the weights")
    if not path.is_dir():
        raise ModelError(f"model {name}: there is no folder {path}")
    return path


def from_uri(uri: str) -> Path:
    """The path of a ``file://`` URI of this machine. Raises :class:`ModelError` for another host's."""
    parts = urlsplit(uri)
    if parts.netloc not in {"", "localhost"}:
        raise ModelError(f"model {uri}: file://{parts.netloc}/ is another machine; a local folder is file:///folder")
    return Path(unquote(parts.path))


def fetch(reference: str, cache_dir: Path | None) -> Path:
    """The folder of a ``file://`` URI. Nothing is copied, so ``cache_dir`` stays unused."""
    return folder(str(from_uri(reference)))


def read_config(path: Path, family: str | None = None) -> dict[str, Any]:
    """``config.json`` of a model folder, or what it would say where there is a ``params.json`` instead.

    ``family`` chooses among those whose the latter could be. Raises :class:`ModelError` where there is neither.
    """
    file = path / "config.json"
    if not file.is_file() and (path / "params.json").is_file():
        from graftwork.checkpoints.params import config_of_params

        return config_of_params(path, family)
    if not file.is_file():
        parts = "; it is a checkpoint in parts, which its run goes on from (--resume): take the run's final/, or train "
        parts += "with fsdp.state_dict_type=FULL_STATE_DICT, where each checkpoint is a model"
        hint = parts if (path / "checkpoint.json").is_file() else ""
        raise ModelError(f"model {path}: there is no config.json, so this is not a transformers model folder{hint}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ModelError(f"{file}: there is no model_type in it, so the architecture is unknown")
    names = values.get("architectures")
    if not isinstance(names, list | None) or not all(isinstance(name, str) for name in names or ()):
        raise ModelError(f"{file}: architectures is {names!r}, and must be a list of names; mend it, or remove it")
    return values
