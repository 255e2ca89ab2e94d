"""The part of a check about the configuration: every mistake, as ``graft config validate`` finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.check.report import Part
from graftwork.config.checks import notices_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.config import RunConfig
    from graftwork.config.problems import Problem


def configuration_part(config: RunConfig, problems: Mapping[str, Problem]) -> Part:
    """One line for each mistake, or what the configuration comes to. ``problems``: as ``inspect_config`` gives them."""
    part = Part("configuration", "Configuration", facts={"problems": list(problems)})
    for said, problem in problems.items():
        part.error(said, cause=problem.text)
    for notice in notices_of(config):
        part.warn(notice)
    training = config.training
    names = ", ".join(dataset.dataset_name for dataset in config.data.train.datasets) or "no data"
    what = "an adapter" if training.use_peft else "all weights"
    part.facts |= {"trainer": training.trainer_type, "model": config.model.model_name, "adapter": training.use_peft}
    if not problems:
        part.ok(f"{training.trainer_type} trains {what} of {config.model.model_name} on {names}")
    if problems:
        part.note(
            "the parts below take the default of a wrong field, and do without what a wrong name or place stands for"
        )
    return part
