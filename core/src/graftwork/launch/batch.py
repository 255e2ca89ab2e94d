"""A step's size is a run's, not its processes': per-device batch x processes x accumulation stays what it was."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.config import RunConfig

logger = logging.getLogger(__name__)

PROCESSES, ACCUMULATION = "processes", "gradient_accumulation_steps"


def describe_batch(config: RunConfig, record: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """What ``run.json`` says of it: today's processes, and what the run's steps were made of when it began."""
    first = {PROCESSES: processes, ACCUMULATION: config.training.gradient_accumulation_steps}
    return {PROCESSES: processes, "begun_with": record.get("begun_with", first)}


def micro_batches(record: Mapping[str, Any]) -> int | None:
    """How many batches of one process make up a step of a recorded run."""
    begun = record.get("begun_with")
    return begun[PROCESSES] * begun[ACCUMULATION] if begun else None


def keep_global_batch(config: RunConfig, record: Mapping[str, Any], processes: int) -> RunConfig:
    """The configuration with the accumulation that keeps the steps of the recorded run what they are.

    One that asks for another accumulation than the run began with is left as it is, for the comparison to judge.
    Raises :class:`UsageError` where no whole number keeps the step's size.
    """
    wanted, asked = micro_batches(record), config.training.gradient_accumulation_steps
    if wanted is None or asked * processes == wanted or asked != record["begun_with"][ACCUMULATION]:
        return config
    begun, size = record["begun_with"][PROCESSES], config.training.per_device_train_batch_size
    accumulation, rest = divmod(wanted, processes)
    if rest:
        raise UsageError(
            f"a step of this run is {wanted * size} samples ({size} per device x {begun} processes x {asked} of "
            f"gradient_accumulation_steps), which {processes} processes cannot share evenly; go on with "
            f"{divisors(wanted)} of them"
        )
    logger.info(
        "%d processes instead of %d: gradient_accumulation_steps %d instead of %d, so that a step stays %d samples",
        *(processes, begun, accumulation, asked, wanted * size),
    )
    training = config.training.model_copy(update={ACCUMULATION: accumulation})
    return config.model_copy(update={"training": training})


def divisors(number: int) -> str:
    """``1, 2 or 4``."""
    *first, last = [str(part) for part in range(1, number + 1) if number % part == 0]
    return f"{', '.join(first)} or {last}" if first else last


def forgive_accumulation(
    before: Mapping[str, Any], config: RunConfig, record: Mapping[str, Any], processes: int
) -> Mapping[str, Any]:
    """The earlier settings, with today's accumulation where that makes steps of the same size."""
    accumulation = config.training.gradient_accumulation_steps
    if accumulation * processes != micro_batches(record):
        return before
    return {**before, "training": {**before.get("training", {}), ACCUMULATION: accumulation}}
