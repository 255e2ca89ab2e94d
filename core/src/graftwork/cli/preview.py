"""``graft preview``: what a model will be given."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING

import click

from graftwork.cli.arguments import configuration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.text import Text

    from graftwork.check.preview import ShownSample

COLOURS = {
    "system": "yellow",
    "user": "cyan",
    "assistant": "green",
    "tool": "magenta",
    "prompt": "cyan",
    "chosen": "green",
    "rejected": "red",
}
WIDTH = 96


@click.group()
def preview() -> None:
    """Show what is trained, token by token."""


@preview.command("data", context_settings={"ignore_unknown_options": True})
@click.option("-c", "--config", "path", type=click.Path(dir_okay=False), help="The configuration; -c may be left out.")
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="So many samples.")
@click.option("--split", default="train", show_default=True, help="train, validation or test.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with every token's id.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def data(
    ctx: click.Context, path: str | None, rows: int, split: str, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Show the first samples of a split as the model gets them.

    Each line is a stretch of tokens with its role and its places in the sample; bold and marked + is what is trained.
    A space parts tokens; a dot is a space in one. Packed samples stand under their block; --json has all of each block.
    """
    from graftwork.check.preview import preview as blocks_of
    from graftwork.config import load_config

    path, overrides = configuration(ctx, path, overrides)
    blocks = blocks_of(load_config(path, overrides), split, rows)
    if as_json:
        plain = [[sample.to_plain() for sample in block] for block in blocks]
        click.echo(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        show(blocks, rows)


def show(blocks: Sequence[Sequence[ShownSample]], rows: int) -> None:
    """The first ``rows`` samples under their blocks; markers say in a pipe what colours say on a terminal."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else WIDTH, highlight=False, soft_wrap=not terminal)
    for number, block in enumerate(blocks, 1):
        if len(block) > 1:
            tokens = sum(len(sample.tokens) for sample in block)
            console.print(f"block {number}: {len(block)} samples, {tokens:,} tokens", style="bold", markup=False)
        for sample in block[:rows]:
            console.print(headline(sample), style="bold", markup=False)
            for line in lines(sample):
                console.print(line)
        if len(block) > rows:
            console.print(
                f"... and {len(block) - rows:,} more in this block; --rows says how many to show", markup=False
            )
        console.print()
        rows -= len(block)
        if rows <= 0:
            return


def headline(sample: ShownSample) -> str:
    """``rows.jsonl:3: 120 tokens, 40 labels``."""
    text = f"{sample.where}: {len(sample.tokens):,} tokens, {sample.labels:,} labels"
    if sample.parts is None:
        return text
    prompt, chosen, rejected = sample.parts
    return f"{text}; prompt {prompt:,}, chosen {chosen:,}, rejected {rejected:,}"


def lines(sample: ShownSample) -> Iterator[Text]:
    """A line for each stretch of one role that is or is not trained."""
    from rich.text import Text

    place = 0
    for (role, trained), stretch in groupby(sample.tokens, key=lambda token: (token.role, token.trained)):
        texts = [token.text for token in stretch]
        last = place + len(texts) - 1
        places = f"{place}-{last}" if last > place else str(place)
        colour = COLOURS.get(role or "", "bright_black" if not trained else "green")
        line = Text(f"{role or '-':<10}{'+' if trained else ' '} {places:<9} ", style="bright_black")
        yield line.append(" ".join(texts), style=f"bold {colour}" if trained else colour)
        place = last + 1
