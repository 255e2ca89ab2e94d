"""What a checkpoint format gives and takes: tensors by name, known from headers, read one at a time.

A :class:`Checkpoint` holds no tensor. Views of it (under other names, permuted, joined from parts) are checkpoints
again, so that a conversion is one stream from the reader of one format into the writer of another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from graftwork.errors import ModelError, UsageError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from graftwork.specs import CheckpointFormat


class Header(NamedTuple):
    """What is known about a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The tensors of a folder or file, by name. ``values`` is its ``config.json`` or ``params.json``.

    ``groups`` say what is known of the order in which the tensors were saved: a group follows the one before it, and
    within a group (one safetensors file, say, which is sorted by name) nothing is known.

    ``parts`` is the number of model-parallel files: where there are several, ``headers`` describe one part, and
    ``read(name, part)`` gives one (:func:`graftwork.checkpoints.mapped.as_transformers` joins them).
    """

    path: Path
    format: str
    headers: Mapping[str, Header]
    read: Callable[[str, int], torch.Tensor]
    groups: Sequence[Sequence[str]] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    parts: int = 1

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor. Where the checkpoint has several parts this is the first."""
        return self.read(name, 0)

    def stream(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors one after the other; each may be dropped before the next is read."""
        for name in self.headers if names is None else names:
            yield name, self.read(name, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRequest:
    """A checkpoint to be written into the empty folder ``path``, in the order of its headers.

    ``max_shard_size`` is in bytes. ``splits`` gives, for ``parts`` model-parallel files, the dimension along which
    each tensor is split (None or absent: every file holds the whole). ``shared`` are names that are to share the
    tensor of another name, where the format can.
    """

    path: Path
    checkpoint: Checkpoint
    max_shard_size: int
    parts: int = 1
    splits: Mapping[str, int | None] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


def find_format(path: Path, name: str | None = None) -> CheckpointFormat:
    """The format of a folder or file, by its names and headers; ``name`` chooses among several.

    Raises :class:`ModelError` where it is of none, :class:`UsageError` where it is of several and none is chosen.
    """
    formats = get_registry().checkpoint_formats
    if name is not None:
        return formats[name]
    found = [formats[known] for known in formats if formats[known].sniff(path)]
    if not found:
        raise ModelError(
            f"{path}: no weights in a known format are here: give the folder that has them, or fetch them again. "
            f"Known: {', '.join(sorted(formats))}"
        )
    if len(found) > 1:
        names = ", ".join(sorted(each.name for each in found))
        raise UsageError(f"{path}: there are weights in several formats here ({names}): say which (--from)")
    return found[0]


def open_checkpoint(path: Path, name: str | None = None) -> Checkpoint:
    """The checkpoint in a folder or file (see :func:`find_format`)."""
    return find_format(path, name).open(path)
