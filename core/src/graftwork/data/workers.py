"""Processes that prepare rows for another one, which reads them and gives each worker a chunk at a time.

A worker is a fresh interpreter that talks over its standard input and output. It is not forked: a process that has
threads (torch, tokenizers) may hand a fork a lock that nobody opens; and it never imports ``__main__``, so that a
script without a guard may train. It ends when its input does, so none outlives the process that it works for. What
goes through the pipe is pickled: nobody else holds an end of it.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from graftwork.data.lengths import unexpected
from graftwork.data.prepare import Chunk, Job, Preparer
from graftwork.data.readers import Row
from graftwork.errors import GraftworkError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)
LENGTH_BYTES = 8


class Task(NamedTuple):
    """A chunk of rows: its number, the rows packed to be sent, where the first and the last stand, and how many times
    a worker has died of it.
    """

    number: int
    message: bytes
    first: str
    last: str
    rows: int
    deaths: int = 0

    @property
    def places(self) -> str:
        return f"{self.rows} rows from {self.first} to {self.last}"


@dataclass(frozen=True, slots=True)
class Failure:
    """What a worker could not do, where that is no row's fault."""

    error: BaseException


def prepare_there(chunks: Iterator[Sequence[Row]], job: Job, workers: int) -> Iterator[Chunk]:
    """The chunks, in their order. Raises what a worker raises, and :class:`RunError` where the same rows end two
    of them.
    """
    pool = Pool(job, workers)
    try:
        yield from once_each(pool.results(to_tasks(chunks)))
    finally:
        pool.close()


def to_tasks(chunks: Iterator[Sequence[Row]]) -> Iterator[Task]:
    for number, rows in enumerate(chunks):
        plain = [(row.data, row.where, row.after) for row in rows]  # pickled in half the time
        yield Task(number, packed(plain), rows[0].where, rows[-1].where, len(rows))


def once_each(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Says the workers' warnings; what each of them says of its first rows is said once."""
    said: set[tuple[str, str]] = set()
    for chunk in chunks:
        new = [notice for notice in chunk.notices if (notice.logger, notice.kind) not in said]
        for notice in new:
            said.add((notice.logger, notice.kind))
            logging.getLogger(notice.logger).warning("%s", notice.text)
        chunk.notices = new
        yield chunk


class Worker:
    """One process, and what it is at."""

    def __init__(self, job: bytes) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from graftwork.data.workers import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.task: Task | None = None
        self._job = job

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Readable when there is an answer, or none to come."""
        return self._output.fileno()

    def give(self, task: Task) -> None:
        """Sends a task. A worker that is dead already says so when it is read."""
        self.task = task
        with suppress(BrokenPipeError):
            send(self._input, self._job + task.message)
        self._job = b""

    def take(self) -> Chunk | None:
        """The task's result; None where the worker is dead. Raises what went wrong in it."""
        try:
            answer = receive(self._output)
        except EOFError:
            return None
        if isinstance(answer, Failure):
            raise answer.error
        assert isinstance(answer, Chunk)
        return answer

    def end(self) -> str:
        """Waits for a dead worker, and says what it died of."""
        code = self._process.wait()
        self._close()
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (", as the system does when memory runs out," if name == "SIGKILL" else "")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._output.close()
        with suppress(BrokenPipeError):
            self._input.close()

    @property
    def _input(self) -> BinaryIO:
        assert self._process.stdin is not None
        return self._process.stdin  # type: ignore[return-value]

    @property
    def _output(self) -> BinaryIO:
        assert self._process.stdout is not None
        return self._process.stdout  # type: ignore[return-value]


class Pool:
    """Workers that each have one task at a time; nobody waits for a full pipe while the other does, too."""

    def __init__(self, job: Job, count: int) -> None:
        self._job = packed(job)
        self._count = count
        self._workers: list[Worker] = []
        self._again: deque[Task] = deque()

    def results(self, tasks: Iterator[Task]) -> Iterator[Chunk]:
        """The results in the order of their tasks."""
        done: dict[int, Chunk] = {}
        wanted = 0
        while self._give_out(tasks):
            for worker in select.select([one for one in self._workers if one.task], [], [])[0]:
                task, result = worker.task, worker.take()
                assert task is not None
                if result is None:
                    self._bury(worker, task)
                else:
                    worker.task, done[task.number] = None, result
            while wanted in done:
                yield done.pop(wanted)
                wanted += 1

    def close(self) -> None:
        """Ends all workers."""
        while self._workers:
            self._workers.pop().stop()

    def _give_out(self, tasks: Iterator[Task]) -> bool:
        """Gives every worker something to do as long as there is; says whether anybody is at work."""
        while (free := next((one for one in self._workers if not one.task), None)) or len(self._workers) < self._count:
            task = self._again.popleft() if self._again else next(tasks, None)
            if task is None:
                break
            if free is None:
                # All at once: giving one its first task waits until it has started.
                self._workers += [Worker(self._job) for _ in range(self._count - len(self._workers))]
                free = self._workers[-1]
            free.give(task)
        return any(one.task for one in self._workers)

    def _bury(self, worker: Worker, task: Task) -> None:
        """Its task is given to a new worker once; the second time the rows are to blame."""
        self._workers.remove(worker)
        died = f"a process that prepares data ({worker.pid}) {worker.end()} at the {task.places}"
        if task.deaths:
            raise RunError(
                f"{died}, as the one before it did. Nothing was trained and nothing is lost: look at these rows, give "
                "the run more memory, or set transform_num_workers: 0 for the dataset, to prepare them in one process"
            )
        logger.warning("%s; they are tried once more in a new one", died)
        self._again.append(task._replace(deaths=1))


# What is sent


def packed(value: Any) -> bytes:
    """A value with its length before it."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def send(file: BinaryIO, message: bytes) -> None:
    file.write(message)
    file.flush()


def receive(file: BinaryIO) -> Any:
    """The next value; raises ``EOFError`` where there is none, or only a part of one."""
    length = int.from_bytes(exactly(file, LENGTH_BYTES), "big")
    return pickle.loads(exactly(file, length))  # noqa: S301


def exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


# The worker's own side


def main() -> None:
    """Prepares what it is given until there is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that it works for
    # Whatever prints goes to the standard error: the output is for answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions = sys.stdin.buffer
    logging.getLogger("graftwork").addHandler(logging.NullHandler())  # what it warns of is said over there
    logging.getLogger("graftwork").propagate = False
    try:
        preparer = None
        job = receive(questions)
        while True:
            rows = [Row(*values) for values in receive(questions)]
            answer: Chunk | Failure
            try:
                preparer = preparer or Preparer(job, many=True)
                answer = preparer(rows)
            except GraftworkError as error:
                answer = Failure(error)
            except MemoryError:
                raise  # another worker may have more
            except Exception as error:
                answer = Failure(unexpected(rows[0], error))
            send(answers, packed(answer))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # nobody is left to tell
