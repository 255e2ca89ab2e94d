"""Packing: samples to blocks of at most ``max_length`` tokens. A forward pass takes a number of blocks.

Without packing a block is one sample. With it, conversations stay whole and fill a block until the next one
would not fit; documents are cut where the block is full, and the rest begins the next block. What nothing can be
learned from (an empty document, a last block of one token) is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from graftwork.data.samples import Sample, from_plain, to_plain, windows

if TYPE_CHECKING:
    from collections.abc import Iterator

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
