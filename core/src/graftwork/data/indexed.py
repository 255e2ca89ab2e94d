"""A split that is read whole before the first step: its samples at hand, any epoch's order at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from graftwork.data.batch import Row, to_row
from graftwork.data.blocks import plan_blocks
from graftwork.data.order import epoch_order
from graftwork.data.prepared import PreparedSamples
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from graftwork.config import DatasetSplitParams
    from graftwork.data.account import Account
    from graftwork.data.blocks import Block, Packer, Plan
    from graftwork.data.samples import Sample

NOTHING_LEFT = (
    "the data has rows, but none that can be learned from: each is dropped, shorter than two tokens, or left out by "
    "sample_count or mixture_proportion; change these, or the data"
)


@dataclass(frozen=True, slots=True)
class Counts:
    """The size of a split, each sample counted once."""

    samples: int
    tokens: int
    supervised_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """One epoch: the number of the dataset and of the sample for each of its picks, [S, 2], and their blocks."""

    number: int
    picks: NDArray[np.int64]
    plan: Plan


def batches(items: Iterable[Block], size: int) -> Iterator[list[Block]]:
    """Lists of ``size`` blocks; the last may be shorter."""
    batch: list[Block] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def to_rows(blocks: Sequence[Block], batch_size: int) -> list[Row]:
    """A step's blocks as its rows."""
    return [to_row([sample for block in batch for sample in block]) for batch in batches(blocks, batch_size)]


class IndexedLoader:
    """Steps over prepared samples. The state is the epoch and the number of steps taken in it.

    ``accounts`` say of each dataset what became of its rows.
    """

    def __init__(
        self,
        datasets: Sequence[Sequence[Sample]],
        split: DatasetSplitParams,
        make_packer: Callable[[], Packer],
        *,
        seed: int,
        batch_size: int,
        accumulation: int,
        accounts: Sequence[Account] = (),
    ) -> None:
        self.datasets: list[PreparedSamples] = [
            samples if isinstance(samples, PreparedSamples) else PreparedSamples.of(samples) for samples in datasets
        ]
        self.split = split
        self.make_packer = make_packer
        self.seed = seed
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.accounts = list(accounts)
        self.epoch = 0
        self.step_in_epoch = 0
        self._planned: Epoch | None = None

    @cached_property
    def counts(self) -> Counts:
        """Over all datasets, before sampling and mixing."""
        return Counts(
            samples=sum(map(len, self.datasets)),
            tokens=sum(len(samples.input_ids) for samples in self.datasets),
            supervised_tokens=int(self._labels.sum()),
        )

    @cached_property
    def largest_token(self) -> int:
        """The largest token id in any sample."""
        return max(int(samples.input_ids.max(initial=0)) for samples in self.datasets)

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest segment that a row may have."""
        return min(max(samples.longest for samples in self.datasets), self.make_packer().max_length)

    @cached_property
    def _columns(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Of the samples of all datasets the lengths, and whether any token of theirs is learned."""
        return np.concatenate([samples.lengths for samples in self.datasets]), self._labels > 0

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        """Of the samples of all datasets the numbers of labels."""
        return np.concatenate([samples.supervised for samples in self.datasets])

    def plan(self, number: int) -> Epoch:
        """The blocks of one epoch; at least one, else :class:`DataError`."""
        if self._planned is None or self._planned.number != number:
            sizes = [len(samples) for samples in self.datasets]
            picks = np.asarray(epoch_order(sizes, self.split, self.seed, number), np.int64).reshape(-1, 2)
            first = np.cumsum([0, *sizes])[picks[:, 0]] + picks[:, 1]
            lengths, teaches = self._columns
            plan = plan_blocks(lengths[first], teaches[first], self.make_packer())
            if not len(plan):
                raise DataError(NOTHING_LEFT)
            self._planned = Epoch(number, picks, plan)
        return self._planned

    def blocks(self, number: int, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """The blocks of one epoch, from number ``start`` to ``stop``, that one not included."""
        epoch = self.plan(number)
        for place in range(start, len(epoch.plan) if stop is None else min(stop, len(epoch.plan))):
            yield [self._piece(epoch.picks[which], begin, end) for which, begin, end in epoch.plan.pieces(place)]

    def _piece(self, pick: NDArray[np.int64], begin: int, end: int) -> Sample:
        number, index = int(pick[0]), int(pick[1])
        sample = self.datasets[number][index]
        return sample if (begin, end) == (0, len(sample)) else sample.cut(begin, end)

    def count_steps(self, epochs: float) -> int:
        """Optimizer steps in so many epochs."""
        whole = int(epochs)
        counts = [self._steps_of(number) for number in range(ceil(epochs))]
        return sum(counts[:whole]) + (ceil(counts[whole] * (epochs - whole)) if whole < len(counts) else 0)

    def _steps_of(self, number: int) -> int:
        return ceil(len(self.plan(number).plan) / (self.batch_size * self.accumulation))

    def steps(self) -> Iterator[list[Row]]:
        """Each step's rows, from the loader's state on, epoch after epoch without end."""
        per_step = self.batch_size * self.accumulation
        while True:
            epoch, count = self.epoch, self._steps_of(self.epoch)
            for number in range(self.step_in_epoch, count):
                blocks = list(self.blocks(epoch, number * per_step, (number + 1) * per_step))
                self.epoch, self.step_in_epoch = (epoch + 1, 0) if number + 1 == count else (epoch, number + 1)
                yield to_rows(blocks, self.batch_size)

    def rows(self) -> Iterator[Row]:
        """The rows of the first epoch, for an evaluation."""
        for blocks in batches(self.blocks(0), self.batch_size):
            yield from to_rows(blocks, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"epoch": self.epoch, "step_in_epoch": self.step_in_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; takes effect at the next call of :meth:`steps`."""
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
