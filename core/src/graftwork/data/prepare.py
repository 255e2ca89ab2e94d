"""A dataset's rows to its samples: from the cache, in this process, or in several.

Rows go to the encoder in chunks, in the order of the file, and what became of them comes back in that order: samples
and account do not depend on how many processes there were.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from graftwork.data.account import Account
from graftwork.data.lengths import prepare
from graftwork.data.prepared import PreparedSamples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from graftwork.config import DatasetParams
    from graftwork.data.encoders import LoadRequest
    from graftwork.data.readers import Row, RowSource
    from graftwork.data.samples import Encode

logger = logging.getLogger(__name__)
CHUNK = 256
"""Rows of one chunk."""
WORTH_WORKERS = 24 << 20
"""Bytes of a dataset's files from which on workers are started: they take about a second to be there."""
COMPRESSION = 4
"""A compressed file counts for so many times its size."""
MOST_WORKERS = 16


class Notice(NamedTuple):
    """A warning: its logger, what it says with the values left out, and what it says."""

    logger: str
    kind: str
    text: str


@dataclass(slots=True)
class Chunk:
    """What became of some rows that follow one another."""

    samples: PreparedSamples
    account: Account
    notices: list[Notice] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How the rows of one dataset become samples; plain enough to be sent to another process."""

    dataset: DatasetParams
    request: LoadRequest
    name: str

    def encoder(self) -> Encode:
        from graftwork.data.encoders import encoder_for
        from graftwork.data.names import look_up

        return encoder_for(*look_up(self.dataset), self.request)

    @property
    def limit(self) -> int | None:
        """The most tokens of a sample; None for documents, which are cut when they are packed."""
        from graftwork.data.encoders import schema_of

        return None if schema_of(self.request.split) == "text" else self.request.max_length

    def account(self) -> Account:
        return Account(self.name, self.request.split.max_rejected)


class Preparer:
    """Makes chunks of rows."""

    def __init__(self, job: Job, *, many: bool = False) -> None:
        self._job = job
        self._encode = job.encoder()
        self._limit = job.limit
        self._called = many

    def __call__(self, rows: Sequence[Row]) -> Chunk:
        if self._called:
            self._expect_many()
        self._called = True
        over_long = self._job.request.split.over_long
        return prepare_chunk(rows, self._encode, self._job.account(), self._limit, over_long)

    def _expect_many(self) -> None:
        """The first chunk was not the last: it pays to get ready for more."""
        from graftwork.chat.vocabulary import vocabulary_of

        if hasattr(self._job.request.tokenizer, "backend_tokenizer"):
            vocabulary_of(self._job.request.tokenizer).remember_pieces()


def prepare_chunk(rows: Sequence[Row], encode: Encode, account: Account, limit: int | None, over_long: str) -> Chunk:
    """What becomes of some rows, counted in ``account``."""
    samples = []
    with Noted() as notices:
        for row in rows:
            outcome = prepare(row, encode, limit, over_long)
            account.add(outcome)
            if outcome.sample is not None:
                samples.append(outcome.sample)
    return Chunk(PreparedSamples.of(samples), account, notices.found)


class Noted(logging.Handler):
    """Keeps the warnings of our own loggers, so that they can be said again where the rows are not read again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[Notice] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(Notice(record.name, str(record.msg), record.getMessage()))

    def __enter__(self) -> Noted:
        logging.getLogger("graftwork").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("graftwork").removeHandler(self)


def prepare_rows(source: RowSource, job: Job) -> Chunk:
    """All rows of ``source``. Raises :class:`~graftwork.errors.DataError` where more are rejected than may be."""
    preparer = Preparer(job)
    chunks = chunked(source.rows())
    if workers := count_workers(source, job):
        from graftwork.data.workers import prepare_there

        logger.info("%s: prepared by %d processes", job.name, workers)
        return joined(prepare_there(chunks, job, workers), job)
    return joined(map(preparer, chunks), job)


def joined(made: Iterable[Chunk], job: Job) -> Chunk:
    """The chunks as one, judged as they come."""
    account = job.account()
    pieces: list[PreparedSamples] = []
    notices: list[Notice] = []
    for chunk in made:
        account.merge(chunk.account)
        account.judge(complete=False)
        pieces.append(chunk.samples)
        notices += chunk.notices
    account.close()
    return Chunk(PreparedSamples.joined(pieces), account, notices)


def chunked(rows: Iterator[Row], size: int = CHUNK) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def count_workers(source: RowSource, job: Job) -> int:
    """How many processes prepare the rows beside this one, which reads them: 0 where they would not pay."""
    asked: Any = job.dataset.transform_num_workers
    if isinstance(asked, int):
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2 or os.name != "posix" or weight(source) < WORTH_WORKERS:
        return 0
    return min(cores, MOST_WORKERS)


def weight(source: RowSource) -> int:
    """Bytes of the files, unpacked, about."""
    packed = (".gz", ".parquet")
    return sum(path.stat().st_size * (COMPRESSION if path.name.endswith(packed) else 1) for path in source.files)
