"""The format of Mistral's releases: ``params.json`` beside ``consolidated.safetensors``, single or in shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.checkpoints.formats import Checkpoint
from graftwork.checkpoints.huggingface import (
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

    from graftwork.checkpoints.formats import WriteRequest

SINGLE = "consolidated.safetensors"


def open_mistral(path: Path) -> Checkpoint:
    folder = path.parent if path.is_file() else path
    files = [path] if path.is_file() else shard_files(path, SINGLE)
    if not files:
        raise ModelError(f"model {path}: there is neither {SINGLE} nor {SINGLE}.index.json")
    headers, read = open_shards(files, open_safetensors)
    values = read_json(folder / "params.json") if (folder / "params.json").is_file() else {}
    return Checkpoint(path=path, format="mistral", headers=headers, read=lambda name, _: read(name), values=values)


def write_mistral(request: WriteRequest) -> None:
    write_shards(request, SINGLE, write_safetensors)
    write_json(request.path / "params.json", request.checkpoint.values)
