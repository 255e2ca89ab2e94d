"""``graft check``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from graftwork.cli.arguments import configuration

if TYPE_CHECKING:
    from rich.console import Console

    from graftwork.check.report import Part, Report

WIDTH = 80
MARKS = {"ok": ("ok", "green"), "note": ("--", "bright_black"), "warn": ("warn", "yellow"), "error": ("ERROR", "red")}
SHOWN = 12
"""Lines of a part that are shown; --json has all."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-c", "--config", "path", type=click.Path(dir_okay=False), help="The configuration; -c may be left out.")
@click.option("--all", "every", is_flag=True, help="Look at every row, not only the first 200 of each dataset.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def check(ctx: click.Context, path: str | None, every: bool, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Say everything about a run that can be known before it begins.

    Mistakes, rows that cannot be used, what exactly is trained, steps, memory, disk: no weights are loaded and no GPU
    is needed. OVERRIDES change single values, as for graft train. The exit code is 2 where something is wrong.
    """
    from graftwork.check.check import check_run
    from graftwork.check.subject import SAMPLE

    path, overrides = configuration(ctx, path, overrides)
    report = check_run(path, overrides, limit=None if every else SAMPLE)
    if as_json:
        click.echo(json.dumps(report.to_plain(), indent=2, ensure_ascii=False, default=str))
    else:
        show(report)
    ctx.exit(0 if report.ok else 2)


def show(report: Report) -> None:
    """The report on the terminal, or 80 columns wide in a pipe."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for part in report.parts:
        show_part(console, part)
    errors, warnings = report.count("error"), report.count("warn")
    counts = f"{errors} {'error' if errors == 1 else 'errors'}, {warnings} {'warning' if warnings == 1 else 'warnings'}"
    end = f"ready: graft train -c {report.source}" if report.ok else "the run would not begin, or not do what it should"
    console.print(f"\n{counts}; {end}", style="bold red" if errors else "bold green", markup=False, soft_wrap=True)


def show_part(console: Console, part: Part) -> None:
    """A heading, then a line for each thing; the worst first where there are many."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(part.title, style="bold"))
    table = Table.grid(padding=(0, 1), expand=False)
    table.add_column(width=6, justify="right")
    table.add_column(overflow="fold")
    order = {"error": 0, "warn": 1}
    lines = part.lines if len(part.lines) <= SHOWN else sorted(part.lines, key=lambda line: order.get(line.status, 2))
    for line in lines[:SHOWN]:
        mark, colour = MARKS[line.status]
        table.add_row(Text(mark, style=colour), Text(line.text))
    if len(lines) > SHOWN:
        table.add_row(Text("..."), Text(f"{len(lines) - SHOWN} more lines: --json"))
    console.print(table)
