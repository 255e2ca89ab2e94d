"""How PyTorch's threads wait for each other on a CPU."""

from __future__ import annotations

import os
import sys

SPINS = "GOMP_SPINCOUNT"


def wait_briefly() -> None:
    """Lets a thread of libgomp that waits for another give up its core soon; before PyTorch is imported, or never.

    A step meets at some thousand barriers. By default a thread that came first spins for milliseconds, which costs
    nothing where every thread has a core of its own. Where other programs want the cores too, it spins through the
    very time in which the thread that it waits for could run: docs/performance.md has what that costs. 1,000 rounds
    are what libgomp itself takes when it knows that it has more threads than cores. Who has set anything is heard.
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(SPINS, "1000")
