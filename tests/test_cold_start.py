"""``graft --help`` and every entry module stay free of what is slow to import."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "numpy", "pydantic", "rich", "yaml", "jinja2")
# Runs in a process of its own, in which the heavy modules cannot be imported at all.
PROBE = """
import contextlib, importlib.abc, io, json, sys

HEAVY = set({heavy!r})

class Ban(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{{name}} is banned here")

sys.meta_path.insert(0, Ban())
import graftwork, graftwork.cli, graftwork.errors, graftwork.specs
from graftwork.registry import get_registry

out = io.StringIO()
with contextlib.redirect_stdout(out):
    code = graftwork.cli.main({args!r})
after_help = sorted(sys.modules)
states = {{row.name: [row.state, row.reason] for row in get_registry().plugins}}
print(json.dumps({{"code": code, "out": out.getvalue(), "modules": after_help, "states": states}}))
"""


def probe(args: list[str], folder: Path | None = None, environ: dict[str, str] | None = None) -> dict[str, Any]:
    env = {**os.environ, **({"PYTHONPATH": str(folder)} if folder else {}), **(environ or {})}
    code = PROBE.format(heavy=HEAVY, args=args)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_probe_can_fail(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "benchmarks" / "cold_start.py"))["write_plugins"](tmp_path, 1)
    module = tmp_path / "graftwork_dummy0.py"
    module.write_text(module.read_text().replace("import Path\n", "import Path\n\nimport yaml\n"))
    state, reason = probe(["--help"], tmp_path)["states"]["dummy0"]
    assert state == "broken"
    assert "yaml is banned here" in reason


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["plugins"], ["plugins", "--json"]], ids=" ".join)
def test_nothing_slow_is_imported(args: list[str]) -> None:
    found = probe(args)
    assert found["code"] == 0
    roots = {module.partition(".")[0] for module in found["modules"]}
    assert roots & set(HEAVY) == set()
    # The standard library has slow corners as well, and the configuration is read by no help page.
    assert set(found["modules"]) & {"graftwork.config", "graftwork.messages", "email.parser", "asyncio"} == set()


def test_every_installed_entry_module_loads_without_the_slow_ones() -> None:
    assert {name: state for name, state in probe(["--help"])["states"].items() if state[0] != "active"} == {}


def test_the_commands_themselves_are_not_imported_for_help() -> None:
    modules = probe(["--help"])["modules"]
    assert [name for name in modules if name.startswith("graftwork.cli.")] == []


def test_fifty_plugins_load_and_bring_nothing_slow(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "benchmarks" / "cold_start.py"))["write_plugins"](tmp_path, 50)
    found = probe(["--help"], tmp_path)
    dummies = [f"dummy{n}" for n in range(50)]
    assert [found["states"][name] for name in dummies] == [["active", ""]] * 50
    assert all(f"  {name} " in found["out"] for name in dummies)
    assert {module.partition(".")[0] for module in found["modules"]} & set(HEAVY) == set()


def test_the_console_script_is_the_same_main() -> None:
    script = Path(sys.executable).with_name("graft")
    if not script.exists():
        pytest.skip("graftwork is not installed with its console script beside this python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "graft 0.1.0\n", "")
