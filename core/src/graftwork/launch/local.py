"""A run as several processes of this machine: started together, stopped together, one answer for all.

Each process is told its place by the variables that ``torchrun`` sets. Signals are passed on to all of them, so that
they save together; when one of them fails, the others are stopped, and it is the first one that is named.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graftwork.errors import GraftworkError, UsageError
from graftwork.launch.once import SAID, messages_in
from graftwork.runs.signals import STOPPING, handled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

logger = logging.getLogger(__name__)

RENDEZVOUS = "GRAFTWORK_RENDEZVOUS"
"""The environment variable with the file through which the processes of one machine find each other."""
WITH_WORDS = (1, 2)
"""The exit codes of ``graft`` that come with a message; others may come from anything."""
GRACE_S = 3.0
"""How long the others have to notice by themselves that one has failed, and to say so in the run folder."""


class LaunchError(GraftworkError):
    """One of the processes failed; the exit code is that process's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


class Rank:
    """One process. The first one has the terminal; what others say on stderr is passed on with their number."""

    def __init__(self, number: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.number = number
        self.tail: deque[str] = deque(maxlen=20)
        self._told = 0
        # A session of its own: Ctrl-C in a terminal reaches the launcher alone, which passes it on once.
        self.process = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else subprocess.DEVNULL,
            stderr=None if number == 0 else subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._repeat, daemon=True)
        self._reader.start()

    def pass_on(self, signals: Sequence[int]) -> None:
        """Sends those of ``signals`` that it was not sent yet."""
        while self._told < len(signals):
            self._told += 1
            if self.process.poll() is None:
                self.process.send_signal(signals[self._told - 1])

    def _repeat(self) -> None:
        if self.process.stderr is None:
            return
        with self.process.stderr as lines:
            for line in lines:
                self.tail.append(line.rstrip())
                with suppress(OSError):  # the terminal may be gone
                    sys.stderr.write(f"[rank {self.number}] {line}")
                    sys.stderr.flush()

    def close(self) -> None:
        """Has what it said last passed on."""
        self._reader.join(timeout=1)

    def reason(self, code: int) -> str:
        """Why it ended with ``code``, as far as it said."""
        self.close()
        if code < 0:
            name = signal.Signals(-code).name
            return f"was ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
        said = [line for line in self.tail if line.startswith("Error: ")] or [line for line in self.tail if line]
        where = "its message stands above" if self.number == 0 or not said else said[-1].removeprefix("Error: ")
        return f"ended with exit code {code}: {where}"


def launch(arguments: Sequence[str], count: int) -> int:
    """Runs ``graft`` with ``arguments`` as ``count`` processes and returns their exit code.

    One that fails with the only message that there is has said everything. Raises :class:`LaunchError` where it said
    nothing, or others failed too with words of their own: then the first one is named. Raises :class:`UsageError` where
    this is one of a run's processes already.
    """
    if "WORLD_SIZE" in os.environ:
        raise UsageError(
            f"--nproc-per-node {count}: this process is one of WORLD_SIZE={os.environ['WORLD_SIZE']} already; leave "
            "the option out under torchrun, accelerate launch and srun"
        )
    command = [sys.executable, "-m", "graftwork.launch.child", str(os.getpid()), *arguments]
    with tempfile.TemporaryDirectory(prefix="graftwork-") as folder:
        said = Path(folder, "said")
        said.mkdir()
        environment = {**os.environ, **shared_environment(count, Path(folder)), SAID: str(said)}
        try:
            return together(
                [partial(Rank, number, command, {**environment, **place(number)}) for number in range(count)]
            )
        except LaunchError as error:
            if error.exit_code in WITH_WORDS and messages_in(said) == 1:
                return error.exit_code
            raise


def shared_environment(count: int, folder: Path) -> dict[str, str]:
    """What all processes are told: their number, how they find each other, how many threads each may use."""
    environment = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        RENDEZVOUS: (folder / "rendezvous").as_uri(),
        # For libraries that make their own process group (accelerate, in TRL's trainers).
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    if sys.platform == "linux":
        # Nobody outside this machine has a part in the run.
        environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    if threads := threads_each(count):
        environment["OMP_NUM_THREADS"] = str(threads)
        logger.info("%d processes on %s cores: OMP_NUM_THREADS=%d in each", count, os.cpu_count(), threads)
    return environment


def place(number: int) -> dict[str, str]:
    """What only process ``number`` is told."""
    return {"RANK": str(number), "LOCAL_RANK": str(number)}


def threads_each(count: int) -> int | None:
    """Threads for each process where all of them would take every core; None where the user has said it."""
    return None if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // count)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def together(starts: Sequence[Callable[[], Rank]]) -> int:
    """Starts processes and waits until all have ended: 0, or 129, 130 or 143 after a signal that was passed on.

    A signal that comes while they are started reaches those that are there, and no more are started.
    """
    ranks: list[Rank] = []
    with forwarded(ranks) as sent:
        try:
            for start in starts:
                if not sent:
                    ranks.append(start())
                    ranks[-1].pass_on(sent)
            wait_for(ranks, sent)
        finally:
            stop(ranks)
    unfinished = len(ranks) < len(starts) or any(rank.process.returncode for rank in ranks)
    return 128 + sent[-1] if sent and unfinished else 0


def wait_for(ranks: Sequence[Rank], sent: Sequence[int]) -> None:
    """Waits until all have ended. Raises :class:`LaunchError` where one fails, other than by a signal in ``sent``."""
    ended: queue.SimpleQueue[tuple[Rank, int]] = queue.SimpleQueue()
    for rank in ranks:
        threading.Thread(target=lambda rank=rank: ended.put((rank, rank.process.wait())), daemon=True).start()
    for _ in ranks:
        rank, code = ended.get()
        if code and not (sent and stopped_by(code, sent)):
            raise LaunchError(f"rank {rank.number} of {len(ranks)} {rank.reason(code)}", shell_code(code))


def stopped_by(code: int, sent: Sequence[int]) -> bool:
    """Whether an exit code is what a signal leads to, noticed by Python or not."""
    return any(code in (128 + number, -number) for number in sent)


def shell_code(code: int) -> int:
    """An exit code as a shell gives it: 128 and the signal's number where one ended the process."""
    return 128 - code if code < 0 else code


def stop(ranks: Sequence[Rank]) -> None:
    """Ends those that do not end by themselves within :data:`GRACE_S`."""
    deadline = time.monotonic() + GRACE_S
    for rank in ranks:
        try:
            rank.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.debug("rank %d did not notice, and was stopped", rank.number)
            rank.process.kill()
            rank.process.wait()
        rank.close()


@contextmanager
def forwarded(ranks: Sequence[Rank]) -> Iterator[list[int]]:
    """Within the block the signals that stop a run go to every process; gives the list of those that came."""
    sent: list[int] = []

    def forward(number: int) -> None:
        sent.append(number)
        for rank in ranks:
            rank.pass_on(sent)

    with handled(STOPPING, forward):
        yield sent
