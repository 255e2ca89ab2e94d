"""Which of a run's processes this is, as ``torchrun``, ``accelerate launch`` and ``graft train`` say it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from graftwork.errors import UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """Process ``rank`` of ``size``, the ``local_rank``-th of the ``local_size`` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the run folder and speaks to the user."""
        return self.rank == 0

    @classmethod
    def here(cls) -> Place:
        """From ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``; one process where nothing is set."""
        size = _number("WORLD_SIZE", 1)
        if size == 1:
            return cls()
        rank = _number("RANK", None)
        if not 0 <= rank < size:
            raise UsageError(f"RANK={rank}: the ranks of WORLD_SIZE={size} processes are 0 to {size - 1}")
        return cls(rank, size, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size))


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        said = f"is {text!r}, which is no whole number" if text else "is not set"
        raise UsageError(
            f"the environment variable {name} {said}; torchrun, accelerate launch and graft train --nproc-per-node set "
            "RANK, WORLD_SIZE and LOCAL_RANK together"
        ) from None
