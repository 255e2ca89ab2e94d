"""``graft merge``: an adapter and its base become one plain model folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from graftwork.errors import UsageError


@click.command()
@click.argument("adapter")
@click.option("--base", help="The base model, where the adapter does not record it or it lies elsewhere now.")
@click.option("--output-dir", required=True, type=click.Path(), help="The new folder; it must not exist.")
def merge(adapter: str, base: str | None, output_dir: str) -> None:
    """Merge the LoRA in folder (or Hub id) ADAPTER into its base model."""
    _require_adapter(Path(adapter).expanduser())
    from graftwork.adapters import merge_adapter

    if base is None:
        merged = merge_adapter(adapter, output_dir=output_dir)
    else:
        merged = merge_adapter(base, adapter, output_dir=output_dir)
    click.echo(f"merged model: {output_dir}")
    if merged.can_generate():
        click.echo(f"next:         graft generate {shlex.quote(output_dir)} --prompt '...'")


def _require_adapter(folder: Path) -> None:
    """Said before torch is loaded. A name that is no folder here may be on the Hub."""
    if not folder.is_dir() or (folder / "adapter_config.json").is_file():
        return
    final = folder / "final"
    if (final / "adapter_config.json").is_file():
        remedy = f"this is a run's, whose adapter is {final}"
    elif (folder / "config.json").is_file() or (final / "config.json").is_file():
        remedy = "it holds a whole model, which needs no merge"
    else:
        remedy = "give the folder that training wrote an adapter to (final/ of a run)"
    raise UsageError(f"{folder}: there is no adapter_config.json, so this is not an adapter's folder; {remedy}")
