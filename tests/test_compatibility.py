"""A wheel that was built at graftwork 0.1 and never touched again still installs, loads and works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
WHEEL = FIXTURES / "graftwork_minimal-0.1.0-py3-none-any.whl"
CALL_EVENTS = """
import json
from graftwork.registry import get_registry
events = get_registry().events
events.run_started("run")
events.step_finished("run", 1, {"loss": 2.0})
events.checkpoint_saved("run", 1, "path")
events.run_finished("run", None)
import graftwork_minimal
print(json.dumps(graftwork_minimal.heard))
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed into it, and nothing else."""
    folder = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(WHEEL)], check=True)
    return folder


def run(target: Path, code: str, *args: str) -> str:
    # The core's own listener writes files for a real run, and there is none here.
    env = {"PYTHONPATH": str(target), "GRAFTWORK_PLUGINS": "minimal", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def graft(target: Path, *args: str) -> str:
    return run(target, "import sys; from graftwork.cli import main; sys.exit(main(sys.argv[1:]))", *args)


def test_the_old_wheel_is_active_with_everything_it_declares(target: Path) -> None:
    rows = json.loads(graft(target, "plugins", "--json"))["plugins"]
    (minimal,) = [row for row in rows if row["name"] == "minimal"]
    assert (minimal["state"], minimal["reason"]) == ("active", "")
    assert minimal["distribution"] == "graftwork-minimal"
    assert minimal["provides"] == {
        "commands": ["minimal-hello"],
        "sources": ["minimal"],
        "families": ["minimal"],
        "tokenizers": ["minimal"],
        "chat_templates": ["minimal"],
        "quantizers": ["minimal"],
        "datasets": ["minimal"],
        "collators": ["minimal"],
        "trainers": ["MINIMAL"],
        "optimizers": ["minimal"],
        "engines": ["minimal"],
        "presets": ["minimal_1"],
        "events": ["checkpoint_saved", "run_finished", "run_started", "step_finished"],
    }


def test_the_old_wheel_runs_its_command(target: Path) -> None:
    assert "minimal-hello" in graft(target, "--help")
    assert graft(target, "minimal-hello") == "hello from 0.1\n"


def test_the_old_wheel_hears_every_event(target: Path) -> None:
    assert json.loads(run(target, CALL_EVENTS)) == [
        ["run_started", "run"],
        ["step_finished", "run", 1, {"loss": 2.0}],
        ["checkpoint_saved", "run", 1, "path"],
        ["run_finished", "run", None],
    ]
