"""How threads wait: set before PyTorch is there, and never over what somebody has set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from graftwork.threads import SPINS, wait_briefly

TRAINS = "import sys; from graftwork.cli import main; main(['--version']); import torch; sys.stdout.flush()"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({SPINS: "20"}, "20"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
    ids=["nothing", "a count", "a policy"],
)
def test_the_command_sets_it_for_libgomp(given: dict[str, str], spins: str | None) -> None:
    """libgomp itself says what it took."""
    pytest.importorskip("torch")
    kept = {name: value for name, value in os.environ.items() if name not in (SPINS, "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", TRAINS],
        env={**kept, "OMP_DISPLAY_ENV": "verbose", **given},
        capture_output=True,
        text=True,
        check=True,
    )
    taken = [line.split("'")[1] for line in done.stderr.splitlines() if SPINS in line]
    if not taken:
        pytest.skip("this PyTorch has another OpenMP than libgomp")
    assert (taken == [spins]) if spins else taken != ["1000"]


def test_it_is_left_where_pytorch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """libgomp has read its settings; to write them then would only reach the processes started from here."""
    monkeypatch.delenv(SPINS, raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setitem(sys.modules, "torch", sys)
    wait_briefly()
    assert SPINS not in os.environ
