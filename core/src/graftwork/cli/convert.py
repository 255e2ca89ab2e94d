"""``graft convert``: a checkpoint in another format."""

from __future__ import annotations

import click

FEW = 16
"""Files that are listed by name."""


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--to", required=True, metavar="FORMAT", help="hf, hf-bin, meta or mistral, or a format of a plugin.")
@click.option("--max-shard-size", default="5GB", show_default=True, help="The most that one weight file may hold.")
@click.option("--model-parallel", default=1, show_default=True, help="Into how many parts (meta) to cut the weights.")
@click.option("--family", help="The family of SOURCE, where params.json could be of several.")
@click.option("--from", "from_format", metavar="FORMAT", help="The format of SOURCE, where it holds several.")
def convert(
    source: str,
    target: str,
    to: str,
    max_shard_size: str,
    model_parallel: int,
    family: str | None,
    from_format: str | None,
) -> None:
    """Write the checkpoint in folder SOURCE into the new folder TARGET in another format, bit for bit."""
    from graftwork.checkpoints import convert as run

    done = run(
        source,
        target,
        to,
        max_shard_size=max_shard_size,
        model_parallel=model_parallel,
        family=family,
        from_format=from_format,
    )
    click.echo(f"{done.source} to {done.target}: {done.tensors} tensors, {done.nbytes / 1e6:,.1f} MB")
    files = ", ".join(done.files) if len(done.files) <= FEW else f"{len(done.files)} files"
    click.echo(f"written: {done.path} ({files})")
