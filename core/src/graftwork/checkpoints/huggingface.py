"""The formats of the Hub: ``model.safetensors`` and ``pytorch_model.bin``, single or in shards, and adapters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from graftwork.checkpoints.formats import Checkpoint, Header
from graftwork.checkpoints.safetensors_files import read_headers, read_tensor, write_file
from graftwork.checkpoints.torch_files import TorchFile
from graftwork.checkpoints.unpickle import PickledTensors
from graftwork.errors import ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import torch

    from graftwork.checkpoints.formats import WriteRequest


HF = "model.safetensors"
HF_BIN = "pytorch_model.bin"
ADAPTER = "adapter_model.safetensors"
ADAPTER_BIN = "adapter_model.bin"
CONSOLIDATED = "tok_embeddings.weight"  # what tells Meta's names from transformers' in a single file


def open_hf(path: Path) -> Checkpoint:
    return _open(path, "hf", HF, "config.json", open_safetensors)


def open_hf_bin(path: Path) -> Checkpoint:
    return _open(path, "hf-bin", HF_BIN, "config.json", open_pickled)


def open_adapter(path: Path) -> Checkpoint:
    return _open(path, "adapter", ADAPTER, "adapter_config.json", open_safetensors)


def open_adapter_bin(path: Path) -> Checkpoint:
    return _open(path, "adapter-bin", ADAPTER_BIN, "adapter_config.json", open_pickled)


def write_hf(request: WriteRequest) -> None:
    write_shards(request, HF, write_safetensors)
    write_json(request.path / "config.json", request.checkpoint.values)


def write_hf_bin(request: WriteRequest) -> None:
    write_shards(request, HF_BIN, write_pickled)
    write_json(request.path / "config.json", request.checkpoint.values)


def write_adapter(request: WriteRequest) -> None:
    write_safetensors(request.path / ADAPTER, request.checkpoint, list(request.checkpoint.headers))
    write_json(request.path / "adapter_config.json", request.checkpoint.values)


def write_adapter_bin(request: WriteRequest) -> None:
    write_pickled(request.path / ADAPTER_BIN, request.checkpoint, list(request.checkpoint.headers))
    write_json(request.path / "adapter_config.json", request.checkpoint.values)


def is_hf(path: Path) -> bool:
    return _is_file(path, ".safetensors", but=("adapter_", "consolidated")) or _has(path, HF)


def is_hf_bin(path: Path) -> bool:
    """Where safetensors lie beside them they are what is loaded, as in transformers."""
    if path.is_file():
        pickled = _is_file(path, ".bin", ".pt", ".pth", but=("adapter_", "consolidated"))
        return pickled and CONSOLIDATED not in open_pickled(path).headers
    return _has(path, HF_BIN) and not _has(path, HF)


def is_adapter(path: Path) -> bool:
    return path.name == ADAPTER or (_has(path, ADAPTER) and not has_weights(path))


def is_adapter_bin(path: Path) -> bool:
    return path.name == ADAPTER_BIN or (_has(path, ADAPTER_BIN) and not _has(path, ADAPTER) and not has_weights(path))


def has_weights(path: Path) -> bool:
    """Whether a folder holds weights under transformers' names."""
    return _has(path, HF) or _has(path, HF_BIN)


def check_read(file: Path) -> None:
    """Refuses a weight file beside the one that its folder is read from: another would be loaded than the one named.

    Raises :class:`ModelError` that names both.
    """
    folder = file.parent
    single = next((name for name in (HF, HF_BIN) if _has(folder, name)), None)
    if not file.is_file() or file.suffix == ".json" or single is None:
        return
    if file not in (read := shard_files(folder, single)):
        raise ModelError(f"model {file}: its folder is read from {read[0].name}; move this file to one of its own")


def _has(path: Path, single: str) -> bool:
    return (path / single).is_file() or (path / f"{single}.index.json").is_file()


def _is_file(path: Path, *suffixes: str, but: tuple[str, ...]) -> bool:
    return path.is_file() and path.suffix in suffixes and not path.name.startswith(but)


# Files of tensors


class Opened(NamedTuple):
    """One file or several as one: see :class:`~graftwork.checkpoints.formats.Checkpoint`."""

    headers: Mapping[str, Header]
    read: Callable[[str], torch.Tensor]
    groups: Sequence[Sequence[str]]


def open_safetensors(file: Path) -> Opened:
    """The headers of one file, and a function that reads a tensor."""
    stored = read_headers(file)
    headers = {name: entry.header for name, entry in stored.items()}
    return Opened(headers, lambda name: read_tensor(file, stored[name]), [list(stored)])


def open_pickled(file: Path) -> Opened:
    """As :func:`open_safetensors`; refuses a pickle that names more than tensors."""
    pickled = PickledTensors.of(file)
    headers = {name: Header(*entry) for name, entry in pickled.headers.items()}
    return Opened(headers, pickled.read, [[name] for name in headers])


def write_safetensors(file: Path, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    write_file(file, {name: checkpoint.headers[name] for name in names}, checkpoint.tensor)


def write_pickled(file: Path, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    with TorchFile(file, {name: checkpoint.headers[name] for name in names}) as target:
        for name in target.headers:
            target.write(name, checkpoint.tensor(name))


# Shards


def shard_files(path: Path, single: str) -> list[Path]:
    """The weight files of a folder: ``single``, or the shards that its index names, or none.

    Raises :class:`ModelError` where shards are missing, naming all of them.
    """
    index = path / f"{single}.index.json"
    if (path / single).is_file() or not index.is_file():
        return [path / single] if (path / single).is_file() else []
    names = sorted(set(read_json(index)["weight_map"].values()))
    if outside := [name for name in names if "/" in name or "\\" in name or name.startswith(".")]:
        raise ModelError(f"{index}: the shard {outside[0]!r} would lie outside this folder")
    if lacking := [name for name in names if not (path / name).is_file()]:
        raise ModelError(
            f"model {path}: weight file {', '.join(lacking)} is missing ({len(lacking)} of {len(names)} are): fetch "
            "the folder again"
        )
    return [path / name for name in names]


def open_shards(files: Iterable[Path], opener: Callable[[Path], Opened]) -> Opened:
    """Several files with different tensors as one."""
    headers: dict[str, Header] = {}
    readers: dict[str, Callable[[str], torch.Tensor]] = {}
    groups: list[Sequence[str]] = []
    for file in files:
        own, read, order = opener(file)
        if twice := own.keys() & headers.keys():
            raise ModelError(f"{file}: weight {min(twice)} is in another shard too: the folder mixes two checkpoints")
        headers.update(own)
        readers.update(dict.fromkeys(own, read))
        groups.extend(order)
    return Opened(headers, lambda name: readers[name](name), groups)


def write_shards(request: WriteRequest, single: str, write: Callable[[Path, Checkpoint, Iterable[str]], None]) -> None:
    """Writes shards of at most ``max_shard_size``, cut where transformers cuts them, with the same index."""
    from huggingface_hub import split_state_dict_into_shards_factory

    if request.parts != 1:
        raise UsageError(f"--model-parallel {request.parts}: the {request.checkpoint.format} format has no such parts")
    headers: dict[str, Any] = dict(request.checkpoint.headers)
    split = split_state_dict_into_shards_factory(
        headers,
        get_storage_size=lambda header: header.nbytes,
        get_storage_id=lambda header: None,
        filename_pattern=single.replace(".", "{suffix}.", 1),
        max_shard_size=request.max_shard_size,
    )
    for name, members in split.filename_to_tensors.items():
        write(request.path / name, request.checkpoint, members)
    if split.is_sharded:
        count = sum(header.nbytes // header.dtype.itemsize for header in headers.values())
        metadata = {"total_parameters": count, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        write_json(request.path / f"{single}.index.json", index, sort_keys=True)


def _open(path: Path, name: str, single: str, config: str, opener: Callable[[Path], Opened]) -> Checkpoint:
    folder = path.parent if path.is_file() else path
    files = [path] if path.is_file() else shard_files(path, single)
    if not files:
        raise ModelError(f"model {path}: there is neither {single} nor {single}.index.json")
    opened = open_shards(files, opener)
    values = read_json(folder / config) if (folder / config).is_file() else {}
    return checkpoint_of(path, name, opened, values)


def checkpoint_of(path: Path, name: str, opened: Opened, values: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of files that are not model-parallel."""
    return Checkpoint(
        path=path,
        format=name,
        headers=opened.headers,
        read=lambda key, _: opened.read(key),
        groups=opened.groups,
        values=values,
    )


# JSON


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises :class:`ModelError` where the file holds none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{file}: there is no JSON object in it")
    return values


def write_json(file: Path, values: Mapping[str, Any], *, sort_keys: bool = False) -> None:
    file.write_text(json.dumps(dict(values), indent=2, sort_keys=sort_keys) + "\n", encoding="utf-8")
