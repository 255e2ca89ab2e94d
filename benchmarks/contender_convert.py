"""One conversion in a process of its own: prints its seconds and the memory that it took beyond what imports take."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(source: str, target: str, to: str) -> None:
    """Converts, once everything is imported."""
    from graftwork.checkpoints import convert
    from graftwork.checkpoints.expected import expected_headers

    expected_headers(json.loads(Path(source, "config.json").read_text(encoding="utf-8")))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before, start = memory("VmRSS"), time.perf_counter()
    convert(source, target, to)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_bytes": memory("VmHWM") - before}))


def memory(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    main(*sys.argv[1:])
