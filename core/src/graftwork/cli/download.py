"""``graft download``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from graftwork.errors import UsageError

if TYPE_CHECKING:
    from graftwork.sources.download import Plan


@click.command()
@click.argument("repository")
@click.option(
    "--output-dir",
    "output_dir",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where the files go; default: the Hub's cache, where `model_name: ORG/NAME` finds them.",
)
@click.option(
    "--ignore-patterns",
    "ignore",
    metavar="PATTERN",
    multiple=True,
    help="Files to leave out ('original/*'); several times or separated by commas.",
)
@click.option(
    "--hf-token", "token", metavar="TOKEN", help="Access token; default: HF_TOKEN, or that of `hf auth login`."
)
@click.option("--revision", metavar="NAME", help="Branch, tag or commit.")
def download(
    repository: str, output_dir: Path | None, ignore: tuple[str, ...], token: str | None, revision: str | None
) -> None:
    """Download a repository of the Hugging Face Hub. Run again after a break, it fetches the files that lack.

    REPOSITORY is ORG/NAME, or hf://ORG/NAME@REVISION. Nothing of what comes is run: `graft audit` says what could be.
    """
    from graftwork.sources import download as downloads

    if output_dir is not None and output_dir.is_file():
        raise UsageError(f"--output-dir {output_dir}: this is a file; give a folder")
    options = {"output_dir": output_dir, "ignore": _patterns(ignore), "token": token, "revision": revision}
    plan = downloads.plan(repository, **options)
    click.echo(_announced(plan), err=True)
    click.echo(downloads.download(repository, **options))


def _patterns(given: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns, each once; an empty one, as torchtune's documents write it, leaves nothing out."""
    return tuple(dict.fromkeys(part.strip() for text in given for part in text.split(",") if part.strip()))


def _announced(plan: Plan) -> str:
    here = f", {_size(plan.present)} of it here already" if plan.present else ""
    text = f"{plan.repository}: {len(plan.files)} files, {_size(plan.size)}{here}"
    copies = plan.copies()
    if len(copies) > 1:
        listed = ", ".join(f"{kind} {_size(size)}" for kind, size in copies.items())
        text += f"\nit has weights of several kinds ({listed}), often the same ones: --ignore-patterns leaves some out"
    return text


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:.3g} GB"
