"""``graft merge``: an adapter and its base become one plain model folder."""

from __future__ import annotations

import click


@click.command()
@click.argument("adapter")
@click.option("--base", help="The base model, where the adapter does not record it or it lies elsewhere now.")
@click.option("--output-dir", required=True, type=click.Path(), help="The new folder; it must not exist.")
def merge(adapter: str, base: str | None, output_dir: str) -> None:
    """Merge the LoRA in folder (or Hub id) ADAPTER into its base model."""
    from graftwork.adapters import merge_adapter

    if base is None:
        merge_adapter(adapter, output_dir=output_dir)
    else:
        merge_adapter(base, adapter, output_dir=output_dir)
    click.echo(f"merged model: {output_dir}")
    click.echo(f'next:         graft generate {output_dir} "..."')
