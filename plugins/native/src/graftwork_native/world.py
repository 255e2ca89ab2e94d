"""The processes of a run and what they tell each other. One process is a world too, and talks to nobody."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from graftwork.errors import RunError
from graftwork.launch import Place
from graftwork.launch.local import RENDEZVOUS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from graftwork.config import TrainingParams

TIMEOUT_MINUTES = 30.0
"""How long one process waits for another: preparing the data of a large run takes the first one its time."""

ALONE = Place()
SETTLE_S = 0.05


@dataclass(frozen=True, slots=True)
class World:
    """Where this process stands. What is exchanged here are a few numbers, in host memory, over gloo."""

    place: Place = ALONE

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.size

    @property
    def is_main(self) -> bool:
        return self.place.is_main

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes: in the order of the ranks, so that all get the same bits."""
        return [sum(column) for column in zip(*self._every(values), strict=True)]

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        return int(max(values[0] for values in self._every([value])))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        return self.largest(int(flag)) > 0

    def interleaved(self, values: Sequence[float]) -> list[float]:
        """The first value of each process, then the second, ...: as rows are dealt out. All have equally many."""
        return [value for turn in zip(*self._every(values), strict=True) for value in turn]

    def _every(self, values: Sequence[float]) -> list[list[float]]:
        """Each process's values, in the order of the ranks."""
        if self.size == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        return [tensor.tolist() for tensor in every]

    def told(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def collected(self, value: Any) -> list[Any]:
        """Every process's value, in the order of the ranks; in the first process, others get an empty list."""
        if self.size == 1:
            return [value]
        every: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, every, dst=0)
        return every or []

    def by_main(self, work: Callable[[], None]) -> None:
        """Has the first process do something; the others wait, and what it fails with they fail with too."""
        error: RunError | None = None
        try:
            if self.is_main:
                work()
        except RunError as caught:
            error = caught
        said = self.told(None if error is None else str(error))
        if said is not None:
            raise error or RunError(said)

    def barrier(self) -> None:
        """Waits until all are here."""
        self.largest(0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process goes through the block alone; the others after it, and find what it has cached."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


@contextmanager
def joined(training: TrainingParams) -> Iterator[World]:
    """The world that the environment tells of, for as long as the block lasts.

    A process group that somebody has made already (Ray Train) is used as it is. Raises :class:`RunError` where
    another process is lost.
    """
    place = Place.here()
    if place.size == 1:
        yield World()
        return
    owned = not dist.is_initialized()
    try:
        if owned:
            join(place, training.nccl_default_timeout_minutes or TIMEOUT_MINUTES)
        yield World(place)
    except RuntimeError as error:
        if not says_that_another_is_lost(error):
            raise
        raise RunError(
            f"process {place.rank} of {place.size} has lost another one, which ended or did not answer in time "
            f"({str(error).splitlines()[0][:200]}); the first one that failed says why"
        ) from error
    finally:
        if owned and dist.is_initialized():
            # gloo's threads need Python's lock to let go of the last tensors. A group that is destroyed waits for its
            # threads with the lock held: let them finish first, or both wait for ever.
            time.sleep(SETTLE_S)
            dist.destroy_process_group()


def join(place: Place, timeout_minutes: float) -> None:
    """Makes the process group: gloo for host memory, NCCL for GPUs where there are any."""
    cuda = torch.cuda.is_available()
    if cuda:
        if place.local_rank >= torch.cuda.device_count():
            raise RunError(
                f"process {place.local_rank} of this machine has no GPU: torch sees {torch.cuda.device_count()}; start "
                "one process for each (--nproc-per-node), or hide them all to train on the CPU (CUDA_VISIBLE_DEVICES=)"
            )
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=os.environ.get(RENDEZVOUS, "env://"),
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(minutes=timeout_minutes),
    )


def says_that_another_is_lost(error: RuntimeError) -> bool:
    """Whether an error is the network's: torch has types for some of them, and gloo only texts."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return any(word in text for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer"))
