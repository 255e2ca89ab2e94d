"""What a person waits for ``graft --help``, and what each installed plugin adds to it.

    python benchmarks/cold_start.py [--runs 21] [--plugins 50]

Prints medians over whole processes, in turns so that a busy moment of the machine falls on all of them alike.
Commands of other projects are timed beside it where they are installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

PEERS = ("llm", "oumi", "tune", "litgpt", "xinference")
GRAFT = "import sys; from graftwork.cli import main; sys.exit(main())"
# What a small family plugin is: two presets, a family, a template and a command, behind a requirement on the core.
PLUGIN = '''"""Family number {n}."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graftwork import hookimpl
from graftwork.specs import ChatTemplate, CommandSpec, ModelFamily, Preset

SMALL = Preset(name="dummy{n}_1b", model_type="dummy{n}", values={{"hidden_size": 64}}, num_parameters=1)
LARGE = Preset(name="dummy{n}_7b", model_type="dummy{n}", values={{"hidden_size": 128}}, num_parameters=7)


def _command() -> Any:
    import click

    return click.Command("dummy{n}")


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return [ModelFamily(name="dummy{n}", model_types=("dummy{n}",), presets=(SMALL, LARGE))]


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    return [ChatTemplate(name="dummy{n}", path=Path(__file__).with_name("dummy{n}.jinja"))]


@hookimpl
def graftwork_commands() -> list[CommandSpec]:
    return [CommandSpec(name="dummy{n}", help="Does nothing.", load=_command)]
'''


def write_plugins(folder: Path, count: int) -> None:
    """Installs ``count`` plugin distributions into ``folder``, each with a README as long as usual."""
    for n in range(count):
        info = folder / f"graftwork_dummy{n}-1.0.dist-info"
        info.mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: graftwork-dummy{n}\nVersion: 1.0\nRequires-Dist: graftwork>=0.1,<0.2\n"
        (info / "METADATA").write_text(head + "\n" + "A line of a README.\n" * 200)
        (info / "entry_points.txt").write_text(f"[graftwork.plugins]\ndummy{n} = graftwork_dummy{n}\n")
        (folder / f"graftwork_dummy{n}.py").write_text(PLUGIN.format(n=n))


def cases(folder: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name to command and what it adds to the environment."""
    graft = [sys.executable, "-c", GRAFT]
    found = {peer: shutil.which(peer) for peer in PEERS}
    return {
        "python -c pass": ([sys.executable, "-c", "pass"], {}),
        "graft --version": ([*graft, "--version"], {}),
        "graft --help": ([*graft, "--help"], {}),
        "graft --help, with plugins": ([*graft, "--help"], {"PYTHONPATH": str(folder)}),
        **{f"{peer} --help": ([path, "--help"], {}) for peer, path in found.items() if path},
    }


def seconds(command: list[str], extra: dict[str, str]) -> float:
    # Compiled files are kept, as they are on a person's machine.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | extra
    started = perf_counter()
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    return perf_counter() - started


def measure(folder: Path, runs: int) -> dict[str, float]:
    """Median milliseconds of each case; the first round, which fills caches, is not counted."""
    times: dict[str, list[float]] = {}
    for turn in range(runs + 1):
        for name, (command, extra) in cases(folder).items():
            taken = seconds(command, extra) * 1000
            if turn:
                times.setdefault(name, []).append(taken)
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--plugins", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_plugins(Path(folder), options.plugins)
        medians = measure(Path(folder), options.runs)
    for name, milliseconds in medians.items():
        print(f"{name:<30} {milliseconds:7.1f} ms")
    added = (medians["graft --help, with plugins"] - medians["graft --help"]) / options.plugins
    print(f"{f'each of {options.plugins} plugins adds':<30} {added:7.2f} ms")


if __name__ == "__main__":
    main()
