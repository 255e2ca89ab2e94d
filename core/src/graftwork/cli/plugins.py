"""``graft plugins``: what is installed, what it brings, and why not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftwork.discovery import PluginState

HEAD = ("name", "distribution", "version", "state", "import ms", "provides")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with every name in full.")
def plugins(as_json: bool) -> None:
    """Show every installed plugin: its state, what it provides, and the reason where it is not in use."""
    registry = get_registry()
    states = registry.plugins
    if as_json:
        document = {"plugins": [asdict(state) for state in states], "problems": registry.problems}
        click.echo(json.dumps(document, indent=2, default=dict))
        return
    click.echo(_table([HEAD, *map(_row, states)]))
    for state in states:
        if state.reason:
            click.echo(f"\n{state.name} ({state.distribution} {state.version}) is {state.state}: {state.reason}")
    for problem in registry.problems:
        click.echo(f"\n{problem}")


def _row(state: PluginState) -> tuple[str, ...]:
    cost = "-" if state.import_ms is None else f"{state.import_ms:.1f}"
    provides = ", ".join(f"{len(names)} {kind.replace('_', ' ')}" for kind, names in state.provides.items())
    return (state.name, state.distribution, state.version, state.state, cost, provides or "-")


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
