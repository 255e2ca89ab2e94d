"""``graft convert``: a checkpoint in another format, as one stream, whole or not at all."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.builders.family import choose_family
from graftwork.checkpoints.expected import config_json, expected_headers, in_order
from graftwork.checkpoints.formats import WriteRequest, find_format
from graftwork.checkpoints.mapped import as_theirs, as_transformers, completed, has_tied_head, stated_config
from graftwork.checkpoints.params import key_map_of, map_of_family
from graftwork.errors import GraftworkError, ModelError, UsageError
from graftwork.files import complete_folder
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.checkpoints.formats import Checkpoint
    from graftwork.checkpoints.keymap import KeyMap
    from graftwork.specs import CheckpointFormat, ModelFamily

# What goes along: the tokenizer, the template that the model was trained with, stop ids, licences, the model's card.
_BESIDE = (
    "tokenizer*",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
    "*.model.v*",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "USE_POLICY*",
    "NOTICE*",
    "README.md",
)
_CONFIGS = ("config.json", "adapter_config.json")
_OF_ADAPTERS = {"hf": "adapter", "hf-bin": "adapter-bin"}
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was written where: ``source`` and ``target`` are names of formats."""

    path: Path
    source: str
    target: str
    tensors: int
    nbytes: int
    files: tuple[str, ...]


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    max_shard_size: str | int = "5GB",
    family: str | None = None,
    model_parallel: int = 1,
    from_format: str | None = None,
) -> Converted:
    """Writes the checkpoint in the folder ``source`` into the new folder ``target`` in the format ``to``.

    One tensor is in memory at a time. What does not fit (names, shapes, values of the configuration, a format that
    the family has no key map for) is found from headers, before anything is written; a killed process leaves no
    ``target``. Raises :class:`UsageError` where ``target`` exists, :class:`ModelError` where the files are not right.
    """
    origin, place = Path(source).expanduser().absolute(), Path(target).expanduser().absolute()
    _check_places(origin, place)
    shard_bytes = size_in_bytes(max_shard_size)
    found = find_format(origin, from_format)
    wanted = _target(found, to)
    if wanted.write is None:
        raise UsageError(f"--to {wanted.name}: this format is only read")
    request = replace(plan(found.open(origin), found, wanted, family, model_parallel), max_shard_size=shard_bytes)
    try:
        with complete_folder(place) as folder:
            wanted.write(replace(request, path=folder))
            bring_along(origin if origin.is_dir() else origin.parent, folder)
            files = tuple(sorted(file.name for file in folder.iterdir()))
    except OSError as error:
        raise GraftworkError(f"{place} could not be written: {error}; nothing is left there") from error
    headers = request.checkpoint.headers
    total = sum(header.nbytes for header in headers.values())
    return Converted(path=place, source=found.name, target=wanted.name, tensors=len(headers), nbytes=total, files=files)


def size_in_bytes(size: str | int) -> int:
    """Bytes of ``5GB`` and the like; an ``int`` is bytes. Raises :class:`UsageError`."""
    if isinstance(size, int) and size > 0:
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(size).strip().upper())
    if match is None or match.group(2) not in _UNITS or float(match.group(1)) == 0:
        raise UsageError(f"--max-shard-size {size!r}: write a number with a unit, as 5GB or 500MB")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


# Whether it can be


def _check_places(origin: Path, place: Path) -> None:
    if not origin.exists():
        raise ModelError(f"model {origin}: there is no such folder")
    if place.exists() or place.is_symlink():
        raise UsageError(f"{place} exists already, and nothing is overwritten: give another or remove it")
    if origin in place.parents:
        raise UsageError(f"{place} lies inside {origin}: give a folder elsewhere")


def _target(found: CheckpointFormat, to: str) -> CheckpointFormat:
    formats = get_registry().checkpoint_formats
    wanted = formats[to]
    is_adapter = found.names == "adapter"
    if is_adapter and wanted.name in _OF_ADAPTERS:
        wanted = formats[_OF_ADAPTERS[wanted.name]]
    if is_adapter != (wanted.names == "adapter"):
        possible = [name for name in formats if (formats[name].names == "adapter") == is_adapter]
        what = "an adapter" if is_adapter else "a whole model"
        raise UsageError(f"--to {wanted.name}: the source is {what}. Possible: {', '.join(possible)}")
    return wanted


# What is to be written


def plan(
    checkpoint: Checkpoint, found: CheckpointFormat, wanted: CheckpointFormat, family: str | None, parts: int
) -> WriteRequest:
    """The stream of tensors under the names of the wanted format."""
    if found.names == "own":
        owner, key_map = key_map_of(checkpoint, family)
        whole = as_transformers(checkpoint, key_map, stated_config(checkpoint, key_map))
    else:
        owner, whole = None, _ordered(checkpoint) if found.names == "transformers" else checkpoint
    if wanted.names != "own":
        if parts != 1:
            raise UsageError(f"--model-parallel {parts}: the {wanted.name} format has no such parts")
        written = whole if found.names != "own" else replace(whole, values=config_json(whole.values))
        return WriteRequest(path=whole.path, checkpoint=written, max_shard_size=0)
    owner = owner or _family(whole, family)
    target_map = _map(owner, wanted.name, whole.path)
    config = completed(whole.values)
    if parts != 1:
        _check_parts(target_map, config, parts)
    view, splits = as_theirs(whole, target_map, wanted.name)
    view, shared = _with_head(view, target_map, tied=bool(config.get("tie_word_embeddings")))
    return WriteRequest(path=whole.path, checkpoint=view, max_shard_size=0, parts=parts, splits=splits, shared=shared)


def _ordered(checkpoint: Checkpoint) -> Checkpoint:
    """As transformers would save it, where transformers knows the model; else as it was."""
    try:
        expected = list(expected_headers(checkpoint.values))
    except (ModelError, KeyError):
        return checkpoint
    names = in_order(checkpoint.groups or [list(checkpoint.headers)], expected)
    return replace(checkpoint, headers={name: checkpoint.headers[name] for name in names})


def _family(checkpoint: Checkpoint, chosen: str | None) -> ModelFamily:
    values = checkpoint.values
    if not isinstance(values.get("model_type"), str):
        raise ModelError(
            f"model {checkpoint.path}: there is no config.json with a model_type, so its family is unknown"
        )
    return choose_family(values["model_type"], tuple(values.get("architectures") or ()), chosen)


def _map(family: ModelFamily, wanted: str, path: Path) -> KeyMap:
    formats = get_registry().checkpoint_formats
    try:
        return map_of_family(family, wanted, path)
    except UsageError as error:
        possible = [name for name in formats if formats[name].names == "transformers" or name in family.key_maps]
        raise UsageError(f"{error}. Possible for it: {', '.join(possible)}") from error


def _check_parts(key_map: KeyMap, config: Mapping[str, Any], parts: int) -> None:
    for key in {rule.rope_heads for rule in key_map.rules if rule.rope_heads}:
        if parts < 1 or config[key] % parts:
            raise UsageError(
                f"--model-parallel {parts}: the {config[key]} heads of {key} cannot be shared among so many"
            )


def _with_head(view: Checkpoint, key_map: KeyMap, *, tied: bool) -> tuple[Checkpoint, dict[str, str]]:
    """The head beside the embeddings: one tensor for both where it is tied; said where it is not and looks like it."""
    if key_map.tied is None or key_map.tied[0] not in view.headers:
        return view, {}
    if tied:
        return view, dict([key_map.tied])
    if has_tied_head(view, *key_map.tied):
        return replace(view, values={**view.values, "tied_embeddings": False}), {}
    return view, {}


# Writing


def bring_along(origin: Path, folder: Path) -> None:
    """Copies what lies beside the weights; a ``config.json`` stays as it is, also beside ``params.json``."""
    for file in sorted({file for pattern in (*_BESIDE, *_CONFIGS) for file in origin.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
