"""Memory: how it is given back, and how much of it there was."""

from __future__ import annotations

import ctypes
import resource
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed instead of returning it to the system at once.

    A training step allocates and frees the same large tensors again and again. Each time the system hands them
    out afresh, every page is zeroed first: a quarter of a step's time on a CPU, measured. The price is gaps in the
    heap, and so a higher peak: by 42% in a run that trained an adapter. docs/performance.md has what else was tried.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that there was: of the device's memory on CUDA, else of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
