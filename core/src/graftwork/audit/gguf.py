"""The chat templates in a GGUF file, out of its header.

The layout is that of github.com/ggml-org/ggml, docs/gguf.md: magic, version, counts, then keys with typed values.
"""

from __future__ import annotations

import struct
from typing import IO, TYPE_CHECKING

from graftwork.audit.finding import Finding
from graftwork.audit.templates import check_template

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MOST_KEYS = 100_000
_MOST_TEXT = 64 * 2**20


def check_gguf(file: Path, name: str) -> Iterator[Finding]:
    try:
        with file.open("rb") as stream:
            found = list(_templates(stream))  # a key may stand twice, and readers differ in which they take
    except (ValueError, OverflowError, OSError, struct.error) as error:
        what = f"this GGUF file's header cannot be read ({error})"
        yield Finding(severity="lie", file=name, what=what, remedy="fetch it again; if it stays so, do not use it")
        return
    for key, source in found:
        yield from check_template(source, name, key)


def _templates(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    _, version, _, keys = struct.unpack("<4sIQQ", stream.read(24))
    if version not in (2, 3) or keys > _MOST_KEYS:
        raise ValueError(f"version {version}, {keys:,} keys")
    for _ in range(keys):
        key = _text(stream)
        (kind,) = struct.unpack("<I", stream.read(4))
        if kind == _STRING and key.startswith("tokenizer.chat_template"):
            yield key, _text(stream)
        else:
            _skip(stream, kind)


def _skip(stream: IO[bytes], kind: int, depth: int = 0) -> None:
    if kind == _STRING:
        (length,) = struct.unpack("<Q", stream.read(8))
        stream.seek(length, 1)
    elif kind == _ARRAY and depth < 4:
        item, count = struct.unpack("<IQ", stream.read(12))
        if item in _SIZES:
            stream.seek(_SIZES[item] * count, 1)
            return
        for _ in range(count):
            _skip(stream, item, depth + 1)
    elif kind in _SIZES:
        stream.seek(_SIZES[kind], 1)
    else:
        raise ValueError(f"a value of type {kind}")


def _text(stream: IO[bytes]) -> str:
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > _MOST_TEXT:
        raise ValueError(f"a text of {length:,} bytes")
    content = stream.read(length)
    if len(content) < length:
        raise ValueError("it was cut off")
    return content.decode("utf-8", "replace")
