"""A completion that is made in a thread and read piece by piece."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from graftwork.inference.engine import Completion

Show = Callable[[str], None]
Cancelled = Callable[[], bool]
Work = Callable[[Show, Cancelled], Completion]


class ThreadStream(Iterator[str]):
    """Runs ``work(show, cancelled)`` in a thread; iterating gives what it shows.

    What ``work`` raises is raised here, at the end of the pieces. The thread stops at the next token when
    the stream is closed or forgotten.
    """

    def __init__(self, work: Work) -> None:
        self.completion: Completion | None = None
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def __next__(self) -> str:
        piece = self._pieces.get()
        if piece is not None:
            return piece
        self._pieces.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Stops the model and waits for the token it is at."""
        self._stop.set()
        self._thread.join()

    def _run(self, work: Work) -> None:
        try:
            self.completion = work(self._pieces.put, self._stop.is_set)
        except BaseException as error:
            self._error = error
        finally:
            self._pieces.put(None)
