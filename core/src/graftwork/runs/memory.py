"""The memory of a run as it is measured: resident memory on a CPU, the allocator's on CUDA."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def resident_bytes() -> int:
    """What this process has in memory now; where the system does not tell (macOS), the most that it ever had."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return highest_resident_bytes()
    return int(statm.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def highest_resident_bytes() -> int:
    """The most that this program ever had in memory.

    Linux's ``ru_maxrss`` begins with what the process had that started it; ``VmHWM`` begins with the program.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        (kilobytes,) = (line.split()[1] for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM:"))
        return int(kilobytes) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_bytes(device: torch.device) -> int:
    """The most that there was: of the device's memory on CUDA, else of the process's resident memory."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return highest_resident_bytes()
