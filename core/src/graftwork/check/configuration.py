"""The part of a check about the configuration: every mistake, as ``graft config validate`` finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.check.report import Part
from graftwork.config.checks import notices_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftwork.config import RunConfig


def configuration_part(config: RunConfig, problems: Sequence[str]) -> Part:
    """One line for each mistake, or what the configuration comes to."""
    part = Part("configuration", "Configuration", facts={"problems": list(problems)})
    for problem in problems:
        part.error(problem)
    for notice in notices_of(config):
        part.warn(notice)
    training = config.training
    names = ", ".join(dataset.dataset_name for dataset in config.data.train.datasets) or "no data"
    what = "an adapter" if training.use_peft else "all weights"
    part.facts |= {"trainer": training.trainer_type, "model": config.model.model_name, "adapter": training.use_peft}
    if not problems:
        part.ok(f"{training.trainer_type} trains {what} of {config.model.model_name} on {names}")
    if problems:
        part.note("the parts below take the default for what is wrong")
    return part
