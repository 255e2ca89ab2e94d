"""SIGTERM and SIGHUP as Ctrl-C is: an exception on whose way files are closed and half-written folders go."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What asks a process to end beside Ctrl-C: SIGHUP comes when its terminal is closed."""
STOPPING = (signal.SIGINT, *ENDING)

_listening: list[Callable[[int], None]] = []
"""Whom :func:`ask` asks, the innermost last."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; ``number`` says which, and ``128 + number`` is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """What a shell says of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


@contextmanager
def handled(numbers: Iterable[int], handle: Callable[[int], None]) -> Iterator[None]:
    """Within the block ``handle`` is called with the number of a signal; afterwards all is as before.

    Only for this process: a child that it forks (a data worker) ends at once, as it would have without. And only in
    the main thread: Python takes signals nowhere else. A SIGHUP that the process was started to ignore (``nohup``)
    stays ignored.
    """
    owner = os.getpid()

    def call(number: int, _frame: Any) -> None:
        if os.getpid() == owner:
            handle(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, call) for number in taken} if main else {}
    _listening.append(handle)
    try:
        yield
    finally:
        _listening.remove(handle)
        for number, handler in before.items():
            signal.signal(number, handler)


def ask(number: int) -> None:
    """As if the signal had come: for a thread that hears of it in another way, such as from another machine.

    What the innermost :func:`handled` raises is raised here, in the thread that asks. Nothing happens outside of all.
    """
    if _listening:
        _listening[-1](number)


def stop(number: int) -> None:
    """Raises :class:`Stopped`."""
    raise Stopped(number)
