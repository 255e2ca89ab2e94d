"""``graft plugins``: what is installed, what it brings, and why not."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from graftwork.declarations import DECLARED, PRESETS
from graftwork.discovery import DENY
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graftwork.registry import PluginState, Registry

HEAD = ("name", "distribution", "version", "state", "import ms", "provides")
NOUNS = {kind.name: kind.noun for kind in (*DECLARED, PRESETS)} | {"events": "event"}
SHOWN = 3
PIPE_WIDTH = 160
"""Columns where the output is no terminal."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with every name in full.")
def plugins(as_json: bool) -> None:
    """Show every installed plugin: its state, what it provides, and the reason where it is not in use."""
    registry = get_registry(lenient=True)
    if as_json:
        click.echo(_json(registry))
        return
    click.echo(_table([HEAD, *map(_row, registry.plugins)], shutil.get_terminal_size((PIPE_WIDTH, 24)).columns))
    for trouble in _troubles(registry):
        click.echo(f"\n{trouble}")


def _json(registry: Registry) -> str:
    document = {
        "plugins": [asdict(state) for state in registry.plugins],
        "problems": registry.problems,
        "clashes": registry.clashes,
        "dangling": registry.dangling,
    }
    return json.dumps(document, indent=2)


def _row(state: PluginState) -> tuple[str, ...]:
    cost = "-" if state.import_ms is None else f"{state.import_ms:.1f}"
    provides = "; ".join(_provided(kind, names) for kind, names in state.provides.items())
    return (state.name, state.distribution, state.version, state.state, cost, provides or "-")


def _provided(kind: str, names: Sequence[str]) -> str:
    """A few names as they are, many as a number."""
    if len(names) == 1:
        return f"{NOUNS[kind]} {names[0]}"
    plural = kind.replace("_", " ")
    return f"{plural} {', '.join(names)}" if len(names) <= SHOWN else f"{len(names)} {plural}"


def _table(rows: Sequence[Sequence[str]], width: int) -> str:
    """Columns as wide as their cells need; the last is wrapped into what is left of ``width`` characters."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)][:-1]
    left = sum(widths) + 2 * len(widths)
    lines: list[str] = []
    for *cells, last in rows:
        head = "".join(f"{cell:<{column}}  " for cell, column in zip(cells, widths, strict=True))
        wrapped = textwrap.wrap(last, max(width - left, 30), break_long_words=False)
        lines += [head + wrapped[0], *(" " * left + line for line in wrapped[1:])]
    return "\n".join(lines)


def _troubles(registry: Registry) -> Iterator[str]:
    states = registry.plugins
    for state in states:
        if state.reason:
            yield f"{state.name} ({state.distribution} {state.version}) is {state.state}: {state.reason}"
    yield from registry.clashes
    yield from registry.dangling
    yield from registry.problems
    if any(state.state == "broken" for state in states):
        yield f"`graft --debug plugins` shows where a broken plugin failed; {DENY}=NAME turns one off."
