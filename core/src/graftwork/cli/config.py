"""``graft config``: check a configuration, show what it comes to, explain the fields, start a new one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graftwork.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftwork.config import RunConfig
    from graftwork.config.schema import Block

_WITH_OVERRIDES = {"ignore_unknown_options": True}


@click.group()
def config() -> None:
    """Validate, show, explain or start a configuration."""


@config.command(context_settings=_WITH_OVERRIDES)
@click.argument("file")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def validate(file: str, overrides: Sequence[str]) -> None:
    """Check FILE, with OVERRIDES such as training.max_steps=10, and report every mistake at once."""
    from graftwork.config import load_config

    click.echo(f"{file}: valid; {_summary(load_config(file, overrides))}")


def _summary(run: RunConfig) -> str:
    names = ", ".join(dataset.dataset_name for dataset in run.data.train.datasets)
    method = "an adapter" if run.training.use_peft else "all weights"
    return f"{run.training.trainer_type} trains {method} of {run.model.model_name} on {names}"


@config.command(context_settings=_WITH_OVERRIDES)
@click.argument("file")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def show(file: str, overrides: Sequence[str]) -> None:
    """Print the resolved configuration; behind each value that is no default, where it was set."""
    from graftwork.config import load_config
    from graftwork.config.dump import to_yaml

    run = load_config(file, overrides)
    click.echo(to_yaml(run, run.where), nl=False)


@config.command()
@click.argument("section", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON Schema of everything.")
def schema(section: str | None, as_json: bool) -> None:
    """Explain every field: its type, its default and what it means.

    SECTION is a part of the configuration (training, data.*.datasets[]) or a plugin's name (NATIVE_SFT).
    """
    from graftwork.config.schema import blocks, json_schema

    if as_json:
        click.echo(json.dumps(json_schema(), indent=2))
        return
    chosen = _chosen(blocks(), section)
    click.echo("\n\n".join(_table(block) for block in chosen))


def _chosen(found: Sequence[Block], section: str | None) -> Sequence[Block]:
    if section is None:
        return found
    wanted = section.casefold()
    chosen = [block for block in found if f"{block.place}.".casefold().startswith(f"{wanted}.")]
    chosen = chosen or [block for block in found if block.owner.casefold() == wanted]
    if not chosen:
        names = {name for block in found for name in (block.place, block.owner) if name}
        raise UsageError(f"no section {section!r}; {did_you_mean(section, names, limit=40)}")
    return chosen


def _table(block: Block) -> str:
    rows = [(row.name, row.type, row.default, row.description) for row in block.rows()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    return "\n".join([block.title, *(f"  {line}" for line in lines)])


@config.command()
@click.option("--trainer", "trainer_type", help="The training method; default: the native one.")
@click.option("--output", "-o", default="run.yaml", show_default=True, help="The file to write; - prints it.")
def init(trainer_type: str | None, output: str) -> None:
    """Write a commented configuration to start from."""
    from graftwork.config.starter import starter

    text = starter(trainer_type)
    if output == "-":
        click.echo(text, nl=False)
        return
    try:
        with Path(output).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{output} exists and is not overwritten; choose another file with --output") from None
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}; choose another file with --output") from None
    click.echo(f"{output}: fill in model_name and dataset_path, then run: graft config validate {output}")
