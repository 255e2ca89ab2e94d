"""The format of Mistral's releases: ``params.json`` beside ``consolidated.safetensors``, single or in shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.checkpoints.huggingface import (
    checkpoint_of,
    has_weights,
    open_safetensors,
    open_shards,
    read_json,
    shard_files,
    write_json,
    write_safetensors,
    write_shards,
)
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.checkpoints.formats import Checkpoint, WriteRequest

SINGLE = "consolidated.safetensors"


def is_mistral(path: Path) -> bool:
    """Where weights under transformers' names lie beside them those are what is loaded."""
    if path.is_file():
        return path.suffix == ".safetensors" and path.name.startswith("consolidated")
    return ((path / SINGLE).is_file() or (path / f"{SINGLE}.index.json").is_file()) and not has_weights(path)


def open_mistral(path: Path) -> Checkpoint:
    folder = path.parent if path.is_file() else path
    files = [path] if path.is_file() else shard_files(path, SINGLE)
    if not files:
        raise ModelError(f"model {path}: there is neither {SINGLE} nor {SINGLE}.index.json")
    opened = open_shards(files, open_safetensors)
    values = read_json(folder / "params.json") if (folder / "params.json").is_file() else {}
    return checkpoint_of(path, "mistral", opened, values)


def write_mistral(request: WriteRequest) -> None:
    write_shards(request, SINGLE, write_safetensors)
    write_json(request.path / "params.json", request.checkpoint.values)
