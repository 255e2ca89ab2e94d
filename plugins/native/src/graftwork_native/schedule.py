"""The learning rate as a function of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from graftwork.errors import UsageError

if TYPE_CHECKING:
    from graftwork.config import TrainingParams


def warmup_steps(training: TrainingParams, total_steps: int) -> int:
    """``warmup_steps``, or ``warmup_ratio`` of all steps, rounded up as transformers does."""
    if training.warmup_steps is not None:
        return training.warmup_steps
    return math.ceil(total_steps * (training.warmup_ratio or 0.0))


def learning_rate(training: TrainingParams, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step ``step``, counted from 0, of ``total_steps``.

    The formulas of ``transformers.optimization``: a linear rise, then the schedule's fall.
    """
    warmup = warmup_steps(training, total_steps)
    if step < warmup:
        return training.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, total_steps - warmup)
    return training.learning_rate * factor(training, min(1.0, progress))


def factor(training: TrainingParams, progress: float) -> float:
    """The share of the highest learning rate at ``progress`` 0..1 after the warm-up."""
    options: dict[str, Any] = training.lr_scheduler_kwargs
    match training.lr_scheduler_type:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return half_cosine(options.get("num_cycles", 0.5) * 2.0 * progress)
        case "cosine_with_restarts":
            return 0.0 if progress >= 1.0 else half_cosine(options.get("num_cycles", 1) * progress % 1.0)
        case "cosine_with_min_lr":
            floor = minimum(training, options)
            return floor + (1.0 - floor) * half_cosine(progress)
    raise UsageError(f"training.lr_scheduler_type: {training.lr_scheduler_type} has no schedule here")


def half_cosine(progress: float) -> float:
    """1 at 0, 0 at 1."""
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def minimum(training: TrainingParams, options: dict[str, Any]) -> float:
    """``min_lr_rate``, or ``min_lr`` as a share of the learning rate."""
    if "min_lr" in options:
        return float(options["min_lr"]) / training.learning_rate
    return float(options.get("min_lr_rate", 0.0))
