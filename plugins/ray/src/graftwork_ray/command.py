"""``graft ray-train``."""

from __future__ import annotations

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-c", "--config", "path", required=True, type=click.Path(dir_okay=False), help="The configuration.")
@click.option("--num-workers", required=True, type=click.IntRange(min=1), help="How many processes, in the cluster.")
@click.option("--use-gpu", is_flag=True, help="One GPU for each of them; else they train on CPUs.")
@click.option("--address", help="The cluster: auto, or host:port. Default: RAY_ADDRESS, else one of this machine.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of training.output_dir.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def ray_train(
    path: str, num_workers: int, use_gpu: bool, address: str | None, resume: bool, overrides: tuple[str, ...]
) -> None:
    """Train a model on a Ray cluster as a configuration file says.

    OVERRIDES change single values: training.max_steps=10 model.model_name=./mine
    """
    from graftwork.config import load_config

    config = load_config(path, overrides)
    from graftwork_ray.engine import Cluster, train_on

    train_on(Cluster(num_workers, use_gpu, address), config, resume=resume)
    click.echo(f"report   {config.training.output_dir}/report.html")
