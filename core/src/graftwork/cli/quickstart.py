"""``graft quickstart``."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command()
@click.option(
    "--output-dir",
    default="graftwork-quickstart",
    show_default=True,
    type=click.Path(file_okay=False),
    help="Each quickstart gets a new folder in it.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="The same seed, the same model.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of pretraining; fewer for a quick look.")
def quickstart(output_dir: str, seed: int, steps: int | None) -> None:
    """Train, fine-tune and ask a small model, from nothing.

    The text is the documentation that every Python has; nothing is downloaded. It takes about three minutes on two
    cores.
    """
    with quiet():
        from graftwork.quickstart.run import run

        given = {} if steps is None else {"num_steps": steps}
        run(Path(output_dir), seed=seed, say=click.echo, **given)


@contextmanager
def quiet() -> Iterator[None]:
    """The story alone, without the notices of a training and what libraries have to say; --debug shows them."""
    from transformers.utils import logging as libraries

    logger = logging.getLogger("graftwork")
    before = logger.level, libraries.get_verbosity(), libraries.is_progress_bar_enabled()
    if logger.level == logging.INFO:
        logger.setLevel(logging.WARNING)
    libraries.set_verbosity_error()
    libraries.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before[0])
        libraries.set_verbosity(before[1])
        if before[2]:
            libraries.enable_progress_bar()
