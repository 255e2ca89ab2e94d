"""Samples as a few long arrays: a hundred thousand of them open in an instant, and may lie in a file.

Shapes: S samples, N tokens in all, W bytes of places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, overload

import numpy as np

from graftwork.data.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class PreparedSamples(Sequence[Sample]):
    """The tokens of all samples one after the other; sample i has those from ``starts[i]`` to ``starts[i + 1]``."""

    input_ids: NDArray[np.int32]  # [N]
    trained: NDArray[np.bool_]  # [N]
    starts: NDArray[np.int64]  # [S + 1]
    parts: NDArray[np.int32]  # [S, 3], or [0, 3] where no sample is a preference pair
    where: NDArray[np.uint8]  # [W], the places as UTF-8
    where_starts: NDArray[np.int64]  # [S + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """A sample is a view of the arrays."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start, stop = self.starts[place], self.starts[place + 1]
        parts = self.parts[place].tolist() if len(self.parts) else None
        where = self.where[self.where_starts[place] : self.where_starts[place + 1]].tobytes().decode()
        return Sample(self.input_ids[start:stop], self.trained[start:stop], where, parts and tuple(parts))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, [S]."""
        return np.diff(self.starts)

    @property
    def supervised(self) -> NDArray[np.int64]:
        """Labels of each sample, [S]: its trained tokens but the first, which nothing predicts."""
        before = np.concatenate(([0], np.cumsum(self.trained, dtype=np.int64)))
        second = np.minimum(self.starts[:-1] + 1, self.starts[1:])
        return np.asarray(before[self.starts[1:]] - before[second])

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation (of a pair, the prompt with the longer answer); 0 without samples."""
        lengths = self.parts[:, 0] + self.parts[:, 1:].max(axis=1) if len(self.parts) else self.lengths
        return int(lengths.max(initial=0))

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> PreparedSamples:
        """The samples in the order given; all or none of them are pairs."""
        places = [sample.where.encode() for sample in samples]
        pairs = [sample.parts for sample in samples if sample.parts is not None]
        return cls(
            input_ids=np.concatenate([np.empty(0, np.int32), *(sample.input_ids for sample in samples)]),
            trained=np.concatenate([np.empty(0, np.bool_), *(sample.trained for sample in samples)]),
            starts=_starts(len(sample) for sample in samples),
            parts=np.asarray(pairs, np.int32).reshape(-1, 3),
            where=np.frombuffer(b"".join(places), np.uint8),
            where_starts=_starts(map(len, places)),
        )

    @classmethod
    def joined(cls, pieces: Sequence[PreparedSamples]) -> PreparedSamples:
        """Several as one, in the order given."""
        if not pieces:
            return cls.of([])
        whole = {
            name: np.concatenate([getattr(piece, name) for piece in pieces])
            for name in ("input_ids", "trained", "parts", "where")
        }
        starts = _starts(length for piece in pieces for length in np.diff(piece.starts).tolist())
        where_starts = _starts(length for piece in pieces for length in np.diff(piece.where_starts).tolist())
        return cls(**whole, starts=starts, where_starts=where_starts)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _starts(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(np.fromiter(lengths, np.int64)))).astype(np.int64)
