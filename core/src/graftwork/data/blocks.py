"""Packing: samples to blocks of at most ``max_length`` tokens. A forward pass takes a number of blocks.

Without packing a block is one sample. With it, conversations stay whole and fill a block until the next one
would not fit; documents are cut where the block is full, and the rest begins the next block. What nothing can be
learned from (an empty document, a last block of one token) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graftwork.data.samples import Sample, from_plain, to_plain, windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Block = list[Sample]
Packing = Literal["none", "whole", "cut"]


class Packer:
    """Makes blocks; keeps what does not fill one yet, which is part of a checkpoint."""

    def __init__(self, max_length: int, packing: Packing, *, documents: bool) -> None:
        self.max_length = max_length
        self.packing = packing
        self.documents = documents
        self._pending: Block = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits for its block to be full."""
        return not self._pending

    @property
    def _room(self) -> int:
        return self.max_length - sum(len(sample) for sample in self._pending)

    def add(self, sample: Sample) -> Iterator[Block]:
        """The blocks that are complete now that ``sample`` came."""
        if len(sample) < 2:
            return
        if self.packing == "none":
            yield from ([piece] for piece in (windows(sample, self.max_length) if self.documents else [sample]))
        elif self.packing == "whole":
            if len(sample) > self._room:
                yield from self.flush()
            self._pending.append(sample)
        else:
            yield from self._cut(sample)

    def _cut(self, sample: Sample) -> Iterator[Block]:
        start = 0
        while start < len(sample):
            piece = sample.cut(start, start + self._room)
            start += len(piece)
            self._pending.append(piece)
            if self._room == 0:
                yield from self.flush()

    def flush(self) -> Iterator[Block]:
        """What is left, as a last block."""
        block, self._pending = self._pending, []
        if any(sample.trained[1:].any() for sample in block):
            yield block

    def state_dict(self) -> list[dict[str, Any]]:
        """The pending samples as plain data."""
        return [to_plain(sample) for sample in self._pending]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._pending = [from_plain(item) for item in state]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which pieces of which samples make up which block: what :class:`Packer` does, for all samples at once.

    P pieces, B blocks. Piece p is the tokens from ``start[p]`` to ``stop[p]`` of sample ``sample[p]``; block b is the
    pieces from ``first[b]`` to ``last[b]``, that one not included.
    """

    sample: NDArray[np.int64]  # [P]
    start: NDArray[np.int64]  # [P]
    stop: NDArray[np.int64]  # [P]
    first: NDArray[np.int64]  # [B]
    last: NDArray[np.int64]  # [B]

    def __len__(self) -> int:
        return len(self.first)

    def pieces(self, block: int) -> list[tuple[int, int, int]]:
        """Sample, start and stop of each piece of a block."""
        places = slice(self.first[block], self.last[block])
        columns = (column[places].tolist() for column in (self.sample, self.start, self.stop))
        return list(zip(*columns, strict=True))


def plan_blocks(lengths: NDArray[np.int64], teaches: NDArray[np.bool_], packer: Packer) -> Plan:
    """The blocks that ``packer`` would make of samples of these lengths, [S], taken in turn.

    ``teaches`` says of each sample whether any token of it is learned; of a document every token is.
    """
    usable = np.flatnonzero(lengths >= 2)
    if packer.packing == "whole":
        return _plan_whole(usable, lengths[usable], teaches[usable], packer.max_length)
    if packer.packing == "cut":
        return _plan_cut(usable, lengths[usable], packer.max_length)
    if packer.documents:
        return _plan_windows(usable, lengths[usable], packer.max_length)
    places = np.arange(len(usable))
    return Plan(usable, np.zeros_like(usable), lengths[usable], places, places + 1)


def _plan_whole(
    usable: NDArray[np.int64], lengths: NDArray[np.int64], teaches: NDArray[np.bool_], max_length: int
) -> Plan:
    first: list[int] = []
    used = max_length
    for place, length in enumerate(lengths.tolist()):
        if not first or used + length > max_length:
            first.append(place)
            used = 0
        used += length
    starts = np.asarray(first, np.int64)
    if not first:
        return Plan(usable, lengths, lengths, starts, starts)
    kept = np.logical_or.reduceat(teaches, starts)
    last = np.append(starts[1:], len(usable))
    return Plan(usable, np.zeros_like(lengths), lengths, starts[kept], last[kept])


def _plan_cut(usable: NDArray[np.int64], lengths: NDArray[np.int64], max_length: int) -> Plan:
    """The samples' tokens as one line, which is cut where a sample ends and where a block is full."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends, np.arange(max_length, total, max_length))
    begins = np.append(0, cuts)[: len(cuts)]
    which = np.searchsorted(ends, begins, side="right")
    offsets = ends[which] - lengths[which]
    full = begins // max_length
    first = np.flatnonzero(np.diff(full, prepend=-1))
    kept = np.maximum.reduceat(cuts - begins, first) >= 2 if len(first) else np.empty(0, np.bool_)
    last = np.append(first[1:], len(cuts))[: len(first)]
    return Plan(usable[which], begins - offsets, cuts - offsets, first[kept], last[kept])


def _plan_windows(usable: NDArray[np.int64], lengths: NDArray[np.int64], max_length: int) -> Plan:
    counts = -(-lengths // max_length)
    which = np.repeat(np.arange(len(usable)), counts)
    start = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * max_length
    stop = np.minimum(start + max_length, lengths[which])
    kept = np.flatnonzero(stop - start > 1)
    return Plan(usable[which], start, stop, kept, kept + 1)
