"""Tensors out of ``.bin``, ``.pth`` and ``.pt`` files, of which nothing is run.

What is allowed, and why torch's own restricted loading is not used: :mod:`graftwork.checkpoints.pickle_tensors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graftwork.checkpoints.pickle_tensors import (
    ITEM_BYTES,
    StoredTensor,
    UnsafePickleError,
    changed,
    stored_tensors,
    stored_values,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["PickledTensors", "UnsafePickleError", "headers", "read_nested", "read_pickle"]


def headers(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor by name, in the file's order; no storage is read.

    Raises :class:`UnsafePickleError` for a pickle that is more than tensors, naming what it would have imported, and
    :class:`~graftwork.errors.ModelError` for a damaged file.
    """
    return PickledTensors.of(path).headers


def read_pickle(path: Path, *, mmap: bool = True) -> Mapping[str, torch.Tensor]:
    """Every tensor by name, in the file's order; tensors that share a storage in the file share it here.

    With ``mmap`` the bytes stay in the file until they are touched, and what is written to a tensor does not reach the
    file. Raises as :func:`headers` does.
    """
    return PickledTensors.of(path).read_all(mmap=mmap)


def read_nested(path: Path) -> Any:
    """The whole value of a file: plain containers of numbers, texts and tensors, as a run's state is.

    Raises as :func:`headers` does.
    """

    def read(leaf: Any) -> Any:
        return _read_one(path, leaf) if isinstance(leaf, StoredTensor) else leaf

    return changed(stored_values(path), read, {})


@dataclass(frozen=True, slots=True)
class PickledTensors:
    """A file's tensors by name; :meth:`read` gives one of them and reads no other."""

    path: Path
    stored: Mapping[str, StoredTensor]

    @classmethod
    def of(cls, path: Path) -> PickledTensors:
        return cls(path, stored_tensors(path))

    @property
    def headers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {name: (tensor.shape, _dtype(tensor)) for name, tensor in self.stored.items()}

    def read(self, name: str) -> torch.Tensor:
        """One tensor in memory of its own: only its part of the file is read."""
        return _read_one(self.path, self.stored[name])

    def read_all(self, *, mmap: bool) -> dict[str, torch.Tensor]:
        """Every tensor; see :func:`read_pickle`."""
        storages: dict[int, torch.UntypedStorage] = {}
        whole = torch.UntypedStorage.from_file(str(self.path), False, self.path.stat().st_size) if mmap else None
        tensors = {}
        for name, tensor in self.stored.items():
            if tensor.start not in storages:
                aligned = tensor.start % ITEM_BYTES[tensor.dtype] == 0
                storages[tensor.start] = (
                    whole[tensor.start : tensor.start + tensor.size]
                    if whole is not None and aligned
                    else _read(self.path, tensor.start, tensor.size)
                )
            tensors[name] = _view(storages[tensor.start], tensor, offset=tensor.offset)
        return tensors


def _dtype(tensor: StoredTensor) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, tensor.dtype)
    return dtype


def _read_one(path: Path, tensor: StoredTensor) -> torch.Tensor:
    item = ITEM_BYTES[tensor.dtype]
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    count = 0 if 0 in tensor.shape else last + 1
    part = _read(path, tensor.start + tensor.offset * item, count * item)
    return _view(part, tensor, offset=0)


def _read(path: Path, start: int, size: int) -> torch.UntypedStorage:
    content = bytearray(size)
    with path.open("rb") as file:
        file.seek(start)
        file.readinto(content)
    return torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if size else torch.UntypedStorage(0)


def _view(storage: torch.UntypedStorage, tensor: StoredTensor, *, offset: int) -> torch.Tensor:
    empty = torch.empty(0, dtype=_dtype(tensor))
    return empty.set_(storage, offset, tensor.shape, tensor.stride)
