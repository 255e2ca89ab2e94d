"""Headers of safetensors files, and indexes of shards: whether they say what is there."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from graftwork.audit.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MOST_HEADER_BYTES = 100_000_000  # the library's own limit
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_FETCH = "fetch the file again; if it stays so, do not use it"


def check_safetensors(file: Path, name: str) -> Iterator[Finding]:
    """The header against the file's size and against itself."""
    for key, what in _problems(file):
        yield Finding(severity="lie", file=name, key=key, what=what, remedy=_FETCH)


def check_index(file: Path, name: str) -> Iterator[Finding]:
    """The shards that an index names: in the folder, there, and with the tensors that they are to have."""
    try:
        shards = json.loads(file.read_bytes())["weight_map"]
        tensors: dict[str, list[str]] = {}
        for tensor, shard in shards.items():
            tensors.setdefault(str(shard), []).append(tensor)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield Finding(severity="lie", file=name, what="this is no index of shards", remedy=_FETCH)
        return
    for shard, wanted in sorted(tensors.items()):
        if "/" in shard or "\\" in shard or shard in ("", ".", ".."):
            what = "this shard lies outside the folder, so that another file would be loaded"
            yield Finding(severity="lie", file=name, key="weight_map", value=shard, what=what, remedy=_FETCH)
        else:
            yield from _check_shard(file.parent / shard, wanted, name)


def _check_shard(shard: Path, wanted: list[str], name: str) -> Iterator[Finding]:
    if not shard.is_file():
        what = f"this shard of {len(wanted)} tensors is not there"
        yield Finding(severity="note", file=name, key="weight_map", value=shard.name, what=what, remedy="fetch it")
    elif shard.suffix == ".safetensors":
        there = {key for key, _ in _pairs_of(shard)}
        if lacking := [tensor for tensor in wanted if tensor not in there]:
            what = f"{len(lacking)} tensors are not in {shard.name}, where the index puts them"
            yield Finding(severity="lie", file=name, key=lacking[0], value=shard.name, what=what, remedy=_FETCH)


class _Object(list[tuple[str, Any]]):
    """A JSON object as it stands, with names that are there twice."""


def _pairs_of(file: Path) -> list[tuple[str, Any]]:
    """The entries of a header as they stand, equal names too; raises ValueError where it is none."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(file.stat().st_size - 8, _MOST_HEADER_BYTES):
            raise ValueError(f"its header would be {length:,} bytes long")
        pairs = json.loads(stream.read(length), object_pairs_hook=_Object)
    if not isinstance(pairs, _Object):
        raise ValueError("its header is no JSON object")
    return pairs


def _problems(file: Path) -> Iterator[tuple[str, str]]:
    try:
        pairs = _pairs_of(file)
    except (ValueError, RecursionError) as error:
        yield "", f"this is no safetensors file, or it was cut off: {str(error)[:120]}"
        return
    with file.open("rb") as stream:
        room = file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
    seen: set[str] = set()
    spans: list[tuple[int, int, str]] = []
    for key, entry in pairs:
        if key in seen:
            yield key, "this name stands twice in the header: two readers may take different tensors"
        seen.add(key)
        if key == "__metadata__":
            continue
        try:
            begin, end = _span(dict(entry))
            spans.append((begin, end, key))
        except (KeyError, TypeError, ValueError) as error:
            yield key, str(error) if type(error) is ValueError else "its entry in the header is none of a tensor"
    yield from _beyond(sorted(spans), room)
    yield from _overlaps(sorted(spans), room)


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("its shape or its place is no number")
    if entry["dtype"] not in _BITS:
        raise ValueError(f"its dtype {str(entry['dtype'])[:20]!r} is not known")
    if begin > end:
        raise ValueError(f"it would lie at bytes {begin:,} to {end:,}")
    wanted = math.prod(shape) * _BITS[entry["dtype"]]
    if (end - begin) * 8 != wanted:
        raise ValueError(f"it has {end - begin:,} bytes, and its shape and dtype need {wanted // 8:,}")
    return begin, end


def _beyond(spans: list[tuple[int, int, str]], room: int) -> Iterator[tuple[str, str]]:
    """One finding for a file that ends too early, however many tensors it lacks."""
    lacking = [span for span in spans if span[1] > room]
    for begin, end, key in lacking[:1]:
        more = f", and {len(lacking) - 1:,} more beyond its end" if len(lacking) > 1 else ""
        yield key, f"it would lie at bytes {begin:,} to {end:,} of {room:,}{more}: the file was cut off"


def _overlaps(spans: list[tuple[int, int, str]], room: int) -> Iterator[tuple[str, str]]:
    reached = 0
    for begin, end, key in spans:
        if begin < reached:
            yield key, "its bytes lie on those of another tensor"
        elif begin > reached:
            yield key, f"{begin - reached:,} bytes before it belong to no tensor: something else may be hidden there"
        reached = max(reached, end)
    if reached < room:
        yield "", f"{room - reached:,} bytes at its end belong to no tensor: something else may be hidden there"
