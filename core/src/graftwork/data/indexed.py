"""A split that is read whole before the first step: samples in memory, any epoch's order at once."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from graftwork.data.batch import Row, to_row
from graftwork.data.order import epoch_order
from graftwork.data.samples import Encode, Sample, fit
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from graftwork.config import DatasetSplitParams
    from graftwork.data.blocks import Block, Packer
    from graftwork.data.readers import RowSource

logger = logging.getLogger(__name__)
SHOWN = 10
"""How many kinds of bad rows one error lists."""
NAMED = 3
"""How many rows of one kind it names."""
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


def read_samples(source: RowSource, encode: Encode, max_length: int | None, over_long: str) -> list[Sample]:
    """Every row of a source as a sample. All bad rows are reported in one :class:`DataError`."""
    samples: list[Sample] = []
    problems: list[tuple[str, str]] = []
    read = shortened = 0
    for row in source.rows():
        read += 1
        try:
            sample = encode(row)
            kept = sample if max_length is None else fit(sample, max_length, over_long)
        except DataError as error:
            problems.append((row.where, str(error).removeprefix(f"{row.where}: ")))
        else:
            samples.extend([kept] if kept else [])
            shortened += kept is not None and len(kept) < len(sample)
    if problems:
        raise bad_rows(problems, read)
    if not samples:
        names = ", ".join(str(file) for file in source.files)
        reason = f"all {read} rows were dropped as too long" if read else "no rows in it"
        raise DataError(f"{names}: {reason}; there is nothing to train on")
    for count, what in ((read - len(samples), "dropped as too long"), (shortened, "cut off after max_length tokens")):
        if count:
            logger.warning("%s: %d of %d rows %s", source.files[0], count, read, what)
    return samples


def bad_rows(problems: Sequence[tuple[str, str]], read: int) -> DataError:
    """One error for all of them: places, and what is wrong there. What is wrong in many rows is said once."""
    if len(problems) == 1:
        return DataError(": ".join(problems[0]))
    causes: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for where, cause in problems:
        # Causes that differ in a number (of tokens, of a message) are one; the first of them stands for all.
        causes.setdefault((where.rpartition(":")[0], re.sub(r"\d+", "#", cause)), []).append((where, cause))
    listed = [_said_once(rows) for rows in causes.values()]
    more = [f"... and {len(listed) - SHOWN} more causes"] if len(listed) > SHOWN else []
    return DataError("\n  ".join([f"{len(problems)} of {read} rows cannot be used:", *listed[:SHOWN], *more]))


def _said_once(rows: Sequence[tuple[str, str]]) -> str:
    where, cause = rows[0]
    if len(rows) == 1:
        return f"{where}: {cause}"
    file = where.rpartition(":")[0]
    numbers = [row.rpartition(":")[2] for row, _ in rows]
    if len(numbers) > NAMED:
        listed = f"{', '.join(numbers[:NAMED])} and {len(numbers) - NAMED} more"
    else:
        listed = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
    alike = all(other == cause for _, other in rows)
    return f"{file}: rows {listed}{'' if alike else ', the first of them'}: {cause}"


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


def mark_last(items: Iterable[list[Block]]) -> Iterator[tuple[list[Block], bool]]:
    """Each item, and whether it is the last."""
    iterator = iter(items)
    item = next(iterator, None)
    while item is not None:
        following = next(iterator, None)
        yield item, following is None
        item = following


def to_rows(blocks: Sequence[Block], batch_size: int) -> list[Row]:
    """A step's blocks as its rows."""
    return [to_row([sample for block in batch for sample in block]) for batch in batches(blocks, batch_size)]


class IndexedLoader:
    """Steps over samples in memory. The state is the epoch and the number of steps taken in it."""

    def __init__(
        self,
        datasets: Sequence[Sequence[Sample]],
        split: DatasetSplitParams,
        make_packer: Callable[[], Packer],
        *,
        seed: int,
        batch_size: int,
        accumulation: int,
    ) -> None:
        self.datasets = datasets
        self.split = split
        self.make_packer = make_packer
        self.seed = seed
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.epoch = 0
        self.step_in_epoch = 0

    @property
    def counts(self) -> Counts:
        """Over all datasets, before sampling and mixing."""
        samples = [sample for dataset in self.datasets for sample in dataset]
        tokens = sum(len(sample) for sample in samples)
        return Counts(len(samples), tokens, sum(int(sample.trained[1:].sum()) for sample in samples))

    @property
    def largest_token(self) -> int:
        """The largest token id in any sample."""
        return max(int(sample.input_ids.max()) for dataset in self.datasets for sample in dataset)

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest segment that a row may have."""
        longest = max(sample.longest for dataset in self.datasets for sample in dataset)
        return min(longest, self.make_packer().max_length)

    def blocks(self, epoch: int) -> Iterator[Block]:
        """The blocks of one epoch; at least one, else :class:`DataError`."""
        packer = self.make_packer()
        sizes = [len(dataset) for dataset in self.datasets]
        found = False
        for number, index in epoch_order(sizes, self.split, self.seed, epoch):
            for block in packer.add(self.datasets[number][index]):
                found = True
                yield block
        for block in packer.flush():
            found = True
            yield block
        if not found:
            raise DataError(NOTHING_LEFT)

    def count_steps(self, epochs: float) -> int:
        """Optimizer steps in so many epochs."""
        whole = int(epochs)
        per_step = self.batch_size * self.accumulation
        counts = [ceil(sum(1 for _ in self.blocks(epoch)) / per_step) for epoch in range(ceil(epochs))]
        return sum(counts[:whole]) + (ceil(counts[whole] * (epochs - whole)) if whole < len(counts) else 0)

    def steps(self) -> Iterator[list[Row]]:
        """Each step's rows, from the loader's state on, epoch after epoch without end."""
        while True:
            per_step = self.batch_size * self.accumulation
            epoch, done = self.epoch, self.step_in_epoch
            for number, (blocks, last) in enumerate(mark_last(batches(self.blocks(epoch), per_step))):
                if number >= done:
                    self.epoch, self.step_in_epoch = (epoch + 1, 0) if last else (epoch, number + 1)
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
