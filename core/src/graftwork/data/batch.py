"""Samples to tensors: one row of segments, with labels only where there are any.

Shapes: T tokens in the row, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graftwork.data.samples import Sample


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Several samples side by side. Segment i takes ``segment_lengths[i]`` tokens, and positions restart there.

    ``labels[i]`` is the token that the model must predict at position ``label_positions[i]``: the token after
    it, within the same segment. ``wheres[i]`` is where segment i comes from.

    A segment that is a preference pair has its ``pairs`` entry: the tokens of the prompt, the chosen and the rejected
    answer. The rejected answer's positions go on from the end of the prompt, as the chosen one's do. Its first token
    is predicted at the prompt's last, as the chosen one's is. ``pair_labels`` are the numbers of labels of both, which
    stand pair by pair in ``labels``.
    """

    input_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64
    segment_lengths: tuple[int, ...]  # sum T
    label_positions: torch.Tensor  # [L] int64, into T
    labels: torch.Tensor  # [L] int64
    wheres: tuple[str, ...] = ()
    pairs: tuple[tuple[int, int, int], ...] | None = None
    pair_labels: tuple[tuple[int, int], ...] | None = None

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation in the row."""
        return int(self.position_ids.max()) + 1

    @property
    def num_labels(self) -> int:
        return len(self.labels)


def to_row(samples: Sequence[Sample]) -> Row:
    """The samples as one row; all of them pairs, or none."""
    places = [places_of(sample) for sample in samples]
    lengths = tuple(len(sample) for sample in samples)
    starts = np.cumsum([0, *lengths[:-1]])
    ids = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    targets = np.concatenate([start + place.targets for start, place in zip(starts, places, strict=True)])
    before = np.concatenate([start + place.before for start, place in zip(starts, places, strict=True)])
    pairs = tuple(sample.parts for sample in samples if sample.parts is not None)
    return Row(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(np.concatenate([place.positions for place in places]))[None],
        segment_lengths=lengths,
        label_positions=torch.from_numpy(before),
        labels=torch.from_numpy(ids[targets]),
        wheres=tuple(sample.where for sample in samples),
        pairs=pairs or None,
        pair_labels=tuple(place.counts for place in places if place.counts is not None) or None,
    )


class Places(NamedTuple):
    """Within one sample: the position of each token, the trained ones, and where each of those is predicted.

    ``counts`` are the labels of a pair's chosen and rejected answer.
    """

    positions: NDArray[np.int64]  # [S]
    targets: NDArray[np.int64]  # [L], into S
    before: NDArray[np.int64]  # [L], into S
    counts: tuple[int, int] | None = None


def places_of(sample: Sample) -> Places:
    """Where the sample's tokens stand. A token is predicted at the one before it; the first of a segment has none."""
    positions = np.arange(len(sample))
    if sample.parts is None:
        targets = np.flatnonzero(sample.trained & (positions > 0))
        return Places(positions, targets, targets - 1)
    prompt, chosen, _ = sample.parts
    second = prompt + chosen  # where the rejected answer begins
    positions[second:] -= chosen
    targets = np.flatnonzero(sample.trained)
    # The token before either answer's first one is the prompt's last.
    before = np.where(targets == second, prompt - 1, targets - 1)
    first = int((targets < second).sum())
    return Places(positions, targets, before, (first, len(targets) - first))
