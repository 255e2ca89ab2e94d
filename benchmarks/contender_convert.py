"""Conversions and copies in turn, in one process: prints the seconds of each, and the memory beyond the imports'."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


def main(source: str, target: str, to: str, rounds: str) -> None:
    """Measures, once everything is imported. The first pair is not counted: memory that a virtual machine has given
    back to its host makes whoever writes first slow.
    """
    from graftwork.checkpoints import convert
    from graftwork.checkpoints.expected import expected_headers

    expected_headers(json.loads(Path(source, "config.json").read_text(encoding="utf-8")))
    pairs = []
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = memory("VmRSS")
    for _ in range(int(rounds) + 1):
        copy = copied(Path(source), Path(target))
        start = time.perf_counter()
        convert(source, target, to)
        pairs.append((copy, time.perf_counter() - start))
        shutil.rmtree(target)
    print(json.dumps({"pairs": pairs[1:], "peak_bytes": memory("VmHWM") - before}))


def copied(source: Path, target: Path) -> float:
    """Seconds of ``cp`` and ``fsync`` of each file."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for file in target.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def memory(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    main(*sys.argv[1:])
