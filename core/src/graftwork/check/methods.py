"""What a trainer is asked about a run before it begins: whether it can be as configured, and how long it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel

    from graftwork.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRequest:
    """What ``TrainerSpec.refuse`` and ``TrainerSpec.count_steps`` get. ``params`` is the trainer's own option block,
    validated; ``processes`` is how many take part.
    """

    config: RunConfig
    params: BaseModel | None
    processes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCount:
    """The steps of a run whose batches are not the samples of the data.

    A step takes ``each`` of what ``unit`` names (``prompts``); ``note`` is a sentence on what is not known beforehand.
    ``per_epoch`` and ``steps`` are None where the number of rows is needed and not known.
    """

    each: int
    unit: str
    per_epoch: int | None
    steps: int | None
    note: str = ""
