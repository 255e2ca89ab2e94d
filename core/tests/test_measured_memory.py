"""The peak of a program is its own, whoever started it."""

from __future__ import annotations

import subprocess
import sys

CHILD = "from graftwork.runs.memory import highest_resident_bytes; print(highest_resident_bytes())"
PARENT = f"""
import subprocess, sys
held = b"x" * (500 << 20)
print(subprocess.run([sys.executable, "-c", {CHILD!r}], check=True, capture_output=True, text=True).stdout)
"""


def test_what_the_starting_process_has_is_not_counted() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], check=True, capture_output=True, text=True)
    assert 5 << 20 < int(done.stdout) < 400 << 20
