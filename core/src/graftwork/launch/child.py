"""``graft`` as one of the processes that a launcher started: it does not outlive the launcher.

``python -m graftwork.launch.child PID ...``, where PID is the launcher's.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
"""From ``linux/prctl.h``."""


def follow(launcher: int) -> None:
    """Has SIGTERM come when the launcher is gone, however it ended: the run is saved, and no process is left behind.

    Linux does that; elsewhere only a launcher that is gone already is noticed.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != launcher:
        os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Runs ``graft`` with what follows the launcher's number."""
    follow(int(arguments[0]))
    from graftwork.cli import main as graft

    return graft(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
