"""``graft train``."""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING

import click

from graftwork.cli.arguments import configuration
from graftwork.errors import DataError

if TYPE_CHECKING:
    from graftwork.training import TrainResult


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-c", "--config", "path", type=click.Path(dir_okay=False), help="The configuration; -c may be left out.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of training.output_dir.")
@click.option(
    "--nproc-per-node",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Train as so many processes of this machine (one for each GPU).",
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def train(ctx: click.Context, path: str | None, resume: bool, nproc_per_node: int, overrides: tuple[str, ...]) -> None:
    """Train a model as a configuration file says.

    OVERRIDES change single values: training.max_steps=10 model.model_name=./mine

    Ctrl-C and SIGTERM finish the step and save; the exit code is then 130 or 143. A second one ends at once.
    """
    from graftwork.config import load_config

    path, overrides = configuration(ctx, path, overrides)
    config = load_config(path, overrides)
    if nproc_per_node > 1:
        from graftwork.launch.local import launch

        options = ["--debug"] if logging.getLogger("graftwork").level == logging.DEBUG else []
        options += ["train", "-c", path, *(["--resume"] if resume else [])]
        raise SystemExit(launch([*options, *overrides], nproc_per_node))
    from graftwork.launch import Place
    from graftwork.runs.progress import Progress
    from graftwork.training import train as run

    main = Place.here().is_main
    try:
        result = run(config, resume=resume, listeners=[Progress()] if main else [])
    except DataError as error:
        raise DataError(
            f"{error}\nAll that can be known of this run before it begins: graft check -c {path}"
        ) from error
    if result.interrupted_by is not None:
        if Place.here().size == 1:  # of several processes the launcher's command is not known here
            click.echo(f"next     {shlex.join(['graft', 'train', '-c', path, '--resume', *overrides])}")
        raise SystemExit(128 + result.interrupted_by)
    for line in summary(result) if main else ():
        click.echo(line)


def summary(result: TrainResult) -> list[str]:
    """What a person wants to know at the end, and what they may do next."""
    lines = [f"{result.step:,} steps, loss {result.metrics.get('loss', float('nan')):.4f}"]
    if "eval_loss" in result.metrics:
        lines[0] += f", held-out loss {result.metrics['eval_loss']:.4f}"
    if skipped := result.metrics.get("skipped_batches"):
        lines[0] += f", {skipped:,.0f} batches without a finite loss left out"
    lines += [*data_lines(result), *memory_line(result)]
    lines.append(f"report   {result.output_dir / 'report.html'}")
    if result.model_path:
        lines.append(f"model    {result.model_path}")
    if result.model_path and result.generates:
        lines.append(f"next     graft generate {shlex.quote(str(result.model_path))} --prompt '...'")
    return lines


def data_lines(result: TrainResult) -> list[str]:
    """What became of the rows of each dataset of which some were left out or cut."""
    from graftwork.data.account import Account
    from graftwork.runs.reading import lookup, read_run

    lines = []
    for counted in lookup(read_run(result.output_dir).info, "data_train.datasets") or ():
        account = Account(counted["name"])
        account.load_plain(counted)
        if account.left_out:
            lines.append(f"rows     {next(account.lines())}")
    return lines


def memory_line(result: TrainResult) -> list[str]:
    """The largest memory beside its forecast, where the trainer measures it."""
    from graftwork.runs import words
    from graftwork.runs.reading import lookup, read_run

    memory = read_run(result.output_dir).info.get("memory")
    peak, forecast = lookup(memory, "peak_bytes"), lookup(memory, "forecast.total_bytes")
    if not peak:
        return []
    beside = f", forecast {' '.join(words.memory(forecast))} ({forecast / peak - 1:+.0%})" if forecast else ""
    return [f"memory   {' '.join(words.memory(peak))} at the peak{beside}"]
