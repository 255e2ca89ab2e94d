"""Memory: how it is given back."""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = (1 << 31) - 1
LARGEST_OF_OLD = 32 << 20
COMES_AND_GOES, STAYS = 1 << 30, 1 << 20
"""Blocks of so many bytes get pages of their own from the system, others lie side by side in glibc's heap."""


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed instead of returning it to the system at once.

    A training step allocates and frees the same large tensors again and again. Each time the system hands them
    out afresh, every page is zeroed first: a quarter of a step's time on a CPU, measured. The price is gaps in the
    heap, and so a higher peak: by 42% in a run that trained an adapter. docs/performance.md has what else was tried;
    returning the gaps after every step (``malloc_trim``) took 16% off a small one and added a third to its CPU time.
    """
    set_option(M_MMAP_THRESHOLD, COMES_AND_GOES)
    set_option(M_TRIM_THRESHOLD, LARGEST)


@contextmanager
def lasting() -> Iterator[None]:
    """Within the block large tensors get pages of their own: weights, and what the optimizer keeps of them.

    In the heap they would take the gaps that a step's tensors leave, and the next step would find none that is large
    enough. (Where a gap is there already, glibc still takes that.)
    """
    set_option(M_MMAP_THRESHOLD, STAYS)
    try:
        yield
    finally:
        set_option(M_MMAP_THRESHOLD, COMES_AND_GOES)


def set_option(option: int, value: int) -> None:
    """Sets an option of glibc's heap, where the process has one."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # glibc before 2.35 takes no threshold above half a heap of a thread; unset, each freed block would go back
        taken = libc.mallopt(option, value)
        if not taken and option == M_MMAP_THRESHOLD:
            libc.mallopt(option, LARGEST_OF_OLD)
