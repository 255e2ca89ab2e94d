"""Samples to tensors: one row of segments, with labels only where there are any.

Shapes: T tokens in the row, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftwork.data.samples import Sample


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Several samples side by side. Segment i takes ``segment_lengths[i]`` tokens, and positions restart there.

    ``labels[i]`` is the token that the model must predict at position ``label_positions[i]``: the token after
    it, within the same segment. ``wheres[i]`` is where segment i comes from.

    A segment that is a preference pair has its ``pairs`` entry: the tokens of the prompt, the chosen and the rejected
    answer. The rejected answer's positions go on from the end of the prompt, as the chosen one's do.
    """

    input_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64
    segment_lengths: tuple[int, ...]  # sum T
    label_positions: torch.Tensor  # [L] int64, into T
    labels: torch.Tensor  # [L] int64
    wheres: tuple[str, ...] = ()
    pairs: tuple[tuple[int, int, int], ...] | None = None

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def num_labels(self) -> int:
        return len(self.labels)


def to_row(samples: Sequence[Sample]) -> Row:
    """The samples as one row."""
    ids = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    trained = np.concatenate([sample.trained for sample in samples])
    lengths = tuple(len(sample) for sample in samples)
    positions = np.concatenate([np.arange(length) for length in lengths])
    # A token is predicted at the place before it; the first of a segment has none.
    targets = np.flatnonzero(trained & (positions > 0))
    return Row(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        segment_lengths=lengths,
        label_positions=torch.from_numpy(targets - 1),
        labels=torch.from_numpy(ids[targets]),
        wheres=tuple(sample.where for sample in samples),
    )
