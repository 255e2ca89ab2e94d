"""Which sample when, for datasets that are read as they are needed: a shuffle buffer, a mixture, and a state.

The state is plain data: a position in the files, the rows that wait in the buffer, the generators. A stream that
is given its state back goes on with the same rows in the same order.
"""

from __future__ import annotations

import random
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from graftwork.data.files import Unreadable
from graftwork.data.indexed import NOTHING_LEFT, to_rows
from graftwork.data.order import dataset_seed
from graftwork.data.readers import START, Position, Row, RowSource
from graftwork.data.samples import from_plain, to_plain
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from graftwork.config import DatasetParams, DatasetSplitParams
    from graftwork.data.account import Account, Outcome
    from graftwork.data.batch import Row as TensorRow
    from graftwork.data.blocks import Block, Packer


class ShuffledRows:
    """The rows of one dataset, epoch after epoch, through a shuffle buffer where one is asked for."""

    def __init__(self, source: RowSource, params: DatasetParams, seed: int) -> None:
        self.source = source
        self.params = params
        self.limit = params.sample_count
        self.capacity = params.shuffle_buffer_size if params.shuffle else 1
        self.generator = random.Random(f"{dataset_seed(params, seed)}:{params.dataset_path}")  # noqa: S311
        self.epoch = 0
        self.taken = 0
        self.position: Position = START
        self.seen: Position = START
        self.passed: Position = START  # what counts as seen from the next row on
        self.left: set[Position] = set()  # new rows that were seen, and left in the buffer when an epoch ended
        self.whole = False
        self.buffer: list[Row] = []
        self._rows = source.rows(START)

    def next(self) -> Row:
        """The next row; after the last one of an epoch the next epoch begins."""
        if self.exhausted:
            if self.taken == 0:
                name = self.params.dataset_path or self.params.dataset_name
                raise DataError(f"{name}: no rows in the dataset; give it some, or remove it")
            self.restart()
            self._fill()
        self.taken += 1
        self.seen = max(self.seen, self.passed)
        place = self.generator.randrange(len(self.buffer)) if self.capacity > 1 else 0
        self.buffer[place], self.buffer[-1] = self.buffer[-1], self.buffer[place]
        return self.buffer.pop()

    @property
    def exhausted(self) -> bool:
        """Whether the epoch has no more rows; looks one row ahead."""
        return not self._fill()

    def is_new(self, row: Row) -> bool:
        """Whether ``row`` is given for the first time; asked once of each row that is given."""
        if row.after in self.left:
            self.left.remove(row.after)
            return True
        return row.after > self.seen

    def restart(self) -> None:
        """Begins the next epoch, also before the end of this one."""
        self.whole = self.whole or self.exhausted
        self.leave()
        self.epoch, self.taken, self.position, self.buffer = self.epoch + 1, 0, START, []
        self._rows = self.source.rows(START)

    def leave(self) -> None:
        """All that was read counts as seen, and of the rows that wait in the buffer the new ones are remembered."""
        seen = max(self.seen, self.passed)
        self.left.update(row.after for row in self.buffer if row.after > seen)
        self.seen = max(seen, self.position)

    def _fill(self) -> bool:
        """Reads until the buffer is full or the epoch's rows are; says whether there is a row to take."""
        while len(self.buffer) < self.capacity and (self.limit is None or self.taken + len(self.buffer) < self.limit):
            row = next(self._rows, None)
            if row is not None:
                self.position = row.after
                self.buffer.append(row)
            elif self.buffer or not self._repeats():
                break
        return bool(self.buffer)

    def _repeats(self) -> bool:
        """Whether the rows come again within the epoch, as ``sample_count`` asks for more than there are."""
        if self.limit is None or self.position == START:
            return False
        self.whole, self.passed, self.position = True, max(self.passed, self.position), START
        self._rows = self.source.rows(START)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain data; see the module."""
        version, internal, gauss = self.generator.getstate()
        return {
            "epoch": self.epoch,
            "taken": self.taken,
            "position": list(self.position),
            "seen": list(max(self.seen, self.passed)),
            "left": [list(after) for after in sorted(self.left)],
            "whole": self.whole,
            "buffer": [row_to_plain(row) for row in self.buffer],
            "generator": [version, list(internal), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.epoch, self.taken = state["epoch"], state["taken"]
        self.position = to_position(state["position"])
        self.seen, self.passed, self.whole = to_position(state["seen"]), START, state["whole"]
        self.left = {to_position(after) for after in state["left"]}
        self.buffer = [row_from_plain(item) for item in state["buffer"]]
        self.generator.setstate(to_generator_state(state["generator"]))
        self._rows = self.source.rows(self.position)


class Mixture:
    """Rows of several datasets, epoch after epoch.

    With proportions each row is drawn as :func:`~graftwork.data.order.interleave` draws it, and an epoch ends when
    the first dataset has run out or when all have, as ``mixture_strategy`` says. Without them every row comes once:
    one dataset after the other, or drawn among those that have rows left where all are to be shuffled.
    """

    def __init__(self, streams: Sequence[ShuffledRows], split: DatasetSplitParams, seed: int) -> None:
        self.streams = streams
        self.strategy = split.mixture_strategy
        self.mixed = all(params.shuffle for params in split.datasets)
        self.weights = [params.mixture_proportion or 0.0 for params in split.datasets]
        self.proportional = any(params.mixture_proportion is not None for params in split.datasets)
        self.seed = seed
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self.done: set[int] = set()
        self.generator = np.random.default_rng([self.seed, len(self.streams), epoch])

    @property
    def wanted(self) -> list[int]:
        """The numbers of the datasets that rows are taken from."""
        return [
            number
            for number, stream in enumerate(self.streams)
            if stream.limit != 0 and (not self.proportional or self.weights[number] > 0)
        ]

    def next(self) -> tuple[int, Row]:
        """The number of a dataset, and its next row."""
        if not self.wanted:
            raise DataError(NOTHING_LEFT)
        if self.is_over:
            for stream in self.streams:
                if stream.taken:
                    stream.restart()
            self._begin(self.epoch + 1)
        number = self._draw() if self.proportional else self._pick()
        row = self.streams[number].next()
        if self.streams[number].exhausted:
            self.done.add(number)
        return number, row

    @property
    def is_over(self) -> bool:
        """Whether the epoch has given its last row; the next row is of the next epoch."""
        enough = any if self.proportional and self.strategy == "first_exhausted" else all
        return enough(number in self.done for number in self.wanted)

    def _draw(self) -> int:
        shares = np.asarray(self.weights) / sum(self.weights)  # they may be rounded: 0.33, 0.33, 0.34
        while (number := int(self.generator.choice(len(self.streams), p=shares))) not in self.wanted:
            pass
        return number

    def _pick(self) -> int:
        left = [number for number in self.wanted if number not in self.done]
        return left[int(self.generator.integers(len(left)))] if self.mixed else left[0]

    def state_dict(self) -> dict[str, Any]:
        """Plain data; see the module."""
        return {
            "epoch": self.epoch,
            "done": sorted(self.done),
            "generator": self.generator.bit_generator.state,
            "streams": [stream.state_dict() for stream in self.streams],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._begin(state["epoch"])
        self.done = set(state["done"])
        self.generator.bit_generator.state = state["generator"]
        for stream, own in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(own)


class StreamedLoader:
    """Steps over a mixture of streams, without end: how long to train is said by ``max_steps``, or counted before.

    ``prepare`` and ``accounts`` are one for each stream: what becomes of a row, and who counts it.
    """

    def __init__(
        self,
        mixture: Mixture,
        prepare: Sequence[Callable[[Row], Outcome]],
        accounts: Sequence[Account],
        packer: Packer,
        *,
        batch_size: int,
        accumulation: int,
    ) -> None:
        self.mixture = mixture
        self.prepare = prepare
        self.accounts = accounts
        self.packer = packer
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.ready: list[Block] = []

    @property
    def epoch(self) -> int:
        """Epochs of the mixture that are over, once the blocks of their last row are taken."""
        return self.mixture.epoch + (self.mixture.is_over and not self.ready)

    def count_steps(self, epochs: float) -> int:
        """Optimizer steps in so many epochs: as many as in the first one, which is gone through for that, times their
        number. Afterwards the stream stands where it stood, with its rows accounted for.
        """
        before = self.state_dict()
        steps = self.steps()
        count = 0
        while not self.epoch:
            next(steps)
            count += 1
        while not self.mixture.epoch:  # its first row says that the rows of the epoch before were all
            next(steps)
        for stream in self.mixture.streams:
            stream.leave()
        after = self.state_dict()
        for own, read in zip(before["mixture"]["streams"], after["mixture"]["streams"], strict=True):
            own |= {name: read[name] for name in ("seen", "left", "whole")}
        self.load_state_dict({**before, "accounts": after["accounts"]})
        return ceil(count * epochs)

    def steps(self) -> Iterator[list[TensorRow]]:
        """Each step's rows, from the loader's state on."""
        per_step = self.batch_size * self.accumulation
        while True:
            while len(self.ready) < per_step:
                self.ready.extend(self._next_blocks())
            blocks, self.ready = self.ready[:per_step], self.ready[per_step:]
            yield to_rows(blocks, self.batch_size)

    def _next_blocks(self) -> list[Block]:
        """The next blocks, from as many rows as it takes. Two passes over all data without a sample are enough."""
        begin = self.mixture.epoch
        while self.mixture.epoch < begin + 2 or not self.packer.is_empty:
            number, row = self.mixture.next()
            outcome = self.prepare[number](row)
            self._count(number, row, outcome)
            if outcome.sample and (blocks := list(self.packer.add(outcome.sample))):
                return blocks
        raise DataError(NOTHING_LEFT)

    def _count(self, number: int, row: Row, outcome: Outcome) -> None:
        """Each row once, however many epochs there are; raises where too many are rejected."""
        stream, account = self.mixture.streams[number], self.accounts[number]
        if stream.is_new(row):
            account.add(outcome)
            account.judge(complete=False)
        elif stream.whole and not account.closed:
            account.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain data; see the module."""
        return {
            "mixture": self.mixture.state_dict(),
            "accounts": [account.to_plain() for account in self.accounts],
            "pending": self.packer.state_dict(),
            "ready": [[to_plain(sample) for sample in block] for block in self.ready],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.mixture.load_state_dict(state["mixture"])
        for account, counted in zip(self.accounts, state["accounts"], strict=True):
            account.load_plain(counted)
        self.packer.load_state_dict(state["pending"])
        self.ready = [[from_plain(item) for item in block] for block in state["ready"]]


def row_to_plain(row: Row) -> dict[str, Any]:
    """A row as plain data; of one that cannot be read, the reason."""
    what = {"unreadable": row.data.message} if isinstance(row.data, Unreadable) else {"data": row.data}
    return {**what, "where": row.where, "after": list(row.after)}


def row_from_plain(item: dict[str, Any]) -> Row:
    """The inverse of :func:`row_to_plain`."""
    data = Unreadable(item["unreadable"]) if "unreadable" in item else item["data"]
    return Row(data, item["where"], to_position(item["after"]))


def to_position(value: Sequence[int]) -> Position:
    """A position as JSON gives it back."""
    return value[0], value[1]


def to_generator_state(value: Sequence[Any]) -> tuple[Any, ...]:
    """The state of ``random.Random`` as JSON gives it back."""
    version, internal, gauss = value
    return version, tuple(internal), gauss
