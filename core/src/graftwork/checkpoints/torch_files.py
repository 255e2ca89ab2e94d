"""Files that ``torch.load`` reads, written as a stream and the same bytes each time.

``torch.save`` wants all tensors at once. Its file is a zip archive, without compression, of a pickle that says how to
put tensors together and one entry for the bytes of each, aligned to 64.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import torch

from graftwork.checkpoints.safetensors_files import bytes_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from graftwork.checkpoints.formats import Header

_ALIGNMENT = 64
_LOCAL_HEADER = 30 + 20  # a zip entry's fixed part, and the sizes in 64 bits that follow its name
_TIME = (1980, 1, 1, 0, 0, 0)
_CHUNK = 16 << 20


class TorchFile:
    """A file in the making: its names, shapes and dtypes are known, its tensors come one by one.

    ``shared`` are names whose tensor is another's: the file holds it once.
    """

    def __init__(self, path: Path, headers: Mapping[str, Header], shared: Mapping[str, str] | None = None) -> None:
        self.headers = headers
        self.keys = {
            name: str(index) for index, name in enumerate(name for name in headers if name not in (shared or {}))
        }
        for name, other in (shared or {}).items():
            self.keys[name] = self.keys[other]
        self.folder = path.stem
        self.stream = path.open("wb")
        self.archive = zipfile.ZipFile(self.stream, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._entry("data.pkl", _pickled(headers, self.keys))
        self._entry("byteorder", b"little")

    def write(self, name: str, tensor: torch.Tensor) -> None:
        self._entry(f"data/{self.keys[name]}", bytes_of(tensor, name, self.headers[name]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._entry("version", b"3\n")
                self.archive.close()
        finally:
            with suppress(OSError, ValueError):  # what could not be written raised before
                self.archive.close()
            self.stream.close()

    def _entry(self, name: str, content: bytes | memoryview) -> None:
        info = zipfile.ZipInfo(f"{self.folder}/{name}", _TIME)
        start = self.stream.tell() + _LOCAL_HEADER + len(info.filename.encode())
        padding = (-start - 4) % _ALIGNMENT
        info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        with self.archive.open(info, "w", force_zip64=True) as entry:
            for position in range(0, len(content), _CHUNK):
                entry.write(content[position : position + _CHUNK])


class _Tensor:
    """Stands for a tensor in the pickle, which then says how to rebuild it."""

    def __init__(self, header: Header, key: str) -> None:
        self.header, self.storage = header, _Storage(header, key)

    def __reduce__(self) -> tuple[Any, ...]:
        shape, dtype = self.header
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        parts: tuple[Any, ...] = (self.storage, 0, shape, strides, False, OrderedDict())
        if dtype in _STORAGES:
            return torch._utils._rebuild_tensor_v2, parts
        return torch._utils._rebuild_tensor_v3, (*parts, dtype)


class _Storage:
    """Stands for a storage, to which the pickle refers by its key in the archive."""

    def __init__(self, header: Header, key: str) -> None:
        typed = header.dtype in _STORAGES
        kind = getattr(torch, f"{_STORAGES[header.dtype]}Storage") if typed else torch.UntypedStorage
        count = header.nbytes // header.dtype.itemsize if typed else header.nbytes
        self.identity = ("storage", kind, key, "cpu", count)


# The dtypes whose storages have a class of their own; the bytes of newer ones are untyped.
_STORAGES = {
    torch.float64: "Double",
    torch.float32: "Float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.bool: "Bool",
    torch.complex64: "ComplexFloat",
}


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, _Storage) else None


def _pickled(headers: Mapping[str, Header], keys: Mapping[str, str]) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump({name: _Tensor(header, keys[name]) for name, header in headers.items()})
    return stream.getvalue()
