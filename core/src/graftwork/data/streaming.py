"""Which sample when, for datasets that are read as they are needed: a shuffle buffer, a mixture, and a state.

The state is plain data: a position in the files, the rows that wait in the buffer, the generators. A stream that
is given its state back goes on with the same rows in the same order.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from graftwork.data.indexed import NOTHING_LEFT, to_rows
from graftwork.data.order import dataset_seed
from graftwork.data.readers import START, Position, Row, RowSource
from graftwork.data.samples import Sample, from_plain, to_plain
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from graftwork.config import DatasetParams, DatasetSplitParams
    from graftwork.data.batch import Row as TensorRow
    from graftwork.data.blocks import Block, Packer


class ShuffledRows:
    """The rows of one dataset, epoch after epoch, through a shuffle buffer where one is asked for."""

    def __init__(self, source: RowSource, params: DatasetParams, seed: int) -> None:
        self.source = source
        self.limit = params.sample_count
        self.capacity = params.shuffle_buffer_size if params.shuffle else 1
        self.generator = random.Random(f"{dataset_seed(params, seed)}:{params.dataset_path}")  # noqa: S311
        self.epoch = 0
        self.taken = 0
        self.position: Position = START
        self.buffer: list[Row] = []
        self._rows = source.rows(START)

    def next(self) -> Row:
        """The next row; after the last one of an epoch the next epoch begins."""
        if not self._fill():
            if self.taken == 0:
                raise DataError(f"{self.source.files[0]}: no rows in the dataset; give it some, or remove it")
            self._begin(self.epoch + 1)
            self._fill()
        self.taken += 1
        place = self.generator.randrange(len(self.buffer)) if self.capacity > 1 else 0
        self.buffer[place], self.buffer[-1] = self.buffer[-1], self.buffer[place]
        return self.buffer.pop()

    def _fill(self) -> bool:
        """Reads until the buffer is full or the epoch's rows are; says whether there is a row to take."""
        while len(self.buffer) < self.capacity and (self.limit is None or self.taken + len(self.buffer) < self.limit):
            row = next(self._rows, None)
            if row is None:
                break
            self.position = row.after
            self.buffer.append(row)
        return bool(self.buffer)

    def _begin(self, epoch: int) -> None:
        self.epoch, self.taken, self.position = epoch, 0, START
        self._rows = self.source.rows(START)

    def state_dict(self) -> dict[str, Any]:
        """Plain data; see the module."""
        version, internal, gauss = self.generator.getstate()
        return {
            "epoch": self.epoch,
            "taken": self.taken,
            "position": list(self.position),
            "buffer": [{"data": row.data, "where": row.where, "after": list(row.after)} for row in self.buffer],
            "generator": [version, list(internal), gauss],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.epoch, self.taken = state["epoch"], state["taken"]
        self.position = to_position(state["position"])
        self.buffer = [Row(item["data"], item["where"], to_position(item["after"])) for item in state["buffer"]]
        self.generator.setstate(to_generator_state(state["generator"]))
        self._rows = self.source.rows(self.position)


class Mixture:
    """Rows of several datasets, drawn by their proportions, or all alike where there are none."""

    def __init__(self, streams: Sequence[ShuffledRows], split: DatasetSplitParams, seed: int) -> None:
        self.streams = streams
        proportions = [params.mixture_proportion for params in split.datasets]
        equal = [1.0] * len(streams)
        self.weights = equal if proportions[0] is None else [proportion or 0.0 for proportion in proportions]
        self.generator = random.Random(f"mixture:{seed}")  # noqa: S311

    def next(self) -> tuple[int, Row]:
        """The number of a dataset, and its next row."""
        number = self.generator.choices(range(len(self.streams)), self.weights)[0]
        return number, self.streams[number].next()

    def state_dict(self) -> dict[str, Any]:
        """Plain data; see the module."""
        version, internal, gauss = self.generator.getstate()
        return {
            "generator": [version, list(internal), gauss],
            "streams": [stream.state_dict() for stream in self.streams],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.generator.setstate(to_generator_state(state["generator"]))
        for stream, own in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(own)


class StreamedLoader:
    """Steps over a mixture of streams, without end: how long to train is for ``max_steps`` to say."""

    def __init__(
        self,
        mixture: Mixture,
        encoders: Sequence[Callable[[Row], Sample | None]],
        packer: Packer,
        *,
        batch_size: int,
        accumulation: int,
    ) -> None:
        self.mixture = mixture
        self.encoders = encoders
        self.packer = packer
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.ready: list[Block] = []

    @property
    def epoch(self) -> int:
        """Passes over the dataset that has been passed over least, of those that are drawn from."""
        drawn = zip(self.mixture.streams, self.mixture.weights, strict=True)
        return min(stream.epoch for stream, weight in drawn if weight > 0)

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
        begin = self.epoch
        while self.epoch < begin + 2 or not self.packer.is_empty:
            number, row = self.mixture.next()
            if (sample := self.encoders[number](row)) and (blocks := list(self.packer.add(sample))):
                return blocks
        raise DataError(NOTHING_LEFT)

    def state_dict(self) -> dict[str, Any]:
        """Plain data; see the module."""
        return {
            "mixture": self.mixture.state_dict(),
            "pending": self.packer.state_dict(),
            "ready": [[to_plain(sample) for sample in block] for block in self.ready],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.mixture.load_state_dict(state["mixture"])
        self.packer.load_state_dict(state["pending"])
        self.ready = [[from_plain(item) for item in block] for block in state["ready"]]


def to_position(value: Sequence[int]) -> Position:
    """A position as JSON gives it back."""
    return value[0], value[1]


def to_generator_state(value: Sequence[Any]) -> tuple[Any, ...]:
    """The state of ``random.Random`` as JSON gives it back."""
    version, internal, gauss = value
    return version, tuple(internal), gauss
