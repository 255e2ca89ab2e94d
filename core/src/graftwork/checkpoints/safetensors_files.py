"""safetensors files: headers without tensors, one tensor at a time, and files byte for byte as the library writes them.

A file is 8 bytes of length, a JSON header padded with blanks to a multiple of 8, and the tensors' bytes. The library
itself wants all tensors of a file at once, which a stream must not hold.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from graftwork.checkpoints.formats import Header
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# The order in which the library lays out a file: by dtype as here, then by name.
_DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}


class Stored(NamedTuple):
    """A tensor in a file: what it is, and its first byte from the start of the file."""

    header: Header
    start: int


def read_headers(file: Path) -> dict[str, Stored]:
    """The tensors in a file by name, in its order. Raises :class:`ModelError` where the file is damaged or cut off."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size - 8:
                raise ValueError(f"its header would be {length} bytes long")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        stored = {name: _stored(name, entry, 8 + length, size) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: a weight file is damaged or was cut off ({error}): fetch it again") from error
    return dict(sorted(stored.items(), key=lambda item: item[1].start))


def read_tensor(file: Path, stored: Stored) -> torch.Tensor:
    """One tensor, in memory of its own."""
    header = stored.header
    content = torch.empty(header.nbytes, dtype=torch.uint8)
    with file.open("rb", buffering=0) as stream:
        stream.seek(stored.start)
        target = memoryview(content.numpy())  # type: ignore[arg-type]  # numpy arrays are buffers from 3.12 on
        while len(target) > 0:
            count = stream.readinto(target)
            if not count:
                raise ModelError(f"{file}: a weight file was cut off: fetch it again")
            target = target[count:]
    return content.view(header.dtype).reshape(header.shape)


def write_file(file: Path, headers: Mapping[str, Header], read: Callable[[str], torch.Tensor]) -> None:
    """Writes tensors one after the other, with the metadata and the order that transformers' files have."""
    ordered = sorted(headers, key=lambda name: (_RANK[headers[name].dtype], name))
    with file.open("wb") as stream:
        stream.write(_header({name: headers[name] for name in ordered}))
        for name in ordered:
            stream.write(bytes_of(read(name), name, headers[name]))


def bytes_of(tensor: torch.Tensor, name: str, header: Header) -> memoryview:
    """The bytes of a tensor, which must be what its header promised."""
    if tuple(tensor.shape) != header.shape or tensor.dtype != header.dtype:
        raise ModelError(
            f"weight {name} is {tuple(tensor.shape)} {tensor.dtype}, and its file's header says {header.shape} "
            f"{header.dtype}: the file is damaged"
        )
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _stored(name: str, entry: Mapping[str, Any], base: int, size: int) -> Stored:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} is of dtype {entry['dtype']}, which is not known here")
    header = Header(tuple(entry["shape"]), _DTYPES[entry["dtype"]])
    if end - begin != math.prod(header.shape) * header.dtype.itemsize or base + end > size or begin < 0:
        raise ValueError(f"{name} would lie at bytes {begin} to {end}")
    return Stored(header, base + begin)


def _header(headers: Mapping[str, Header]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, header in headers.items():
        end = position + header.nbytes
        entries[name] = {
            "dtype": _NAMES[header.dtype],
            "shape": list(header.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
