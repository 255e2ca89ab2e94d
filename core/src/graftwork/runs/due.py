"""What follows a step: a line of metrics, an evaluation, a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftwork.config import TrainingParams


def is_logged(training: TrainingParams, step: int, total_steps: int, *, new_epoch: bool) -> bool:
    """Whether the metrics of a step are written."""
    if step == total_steps or (step == 1 and training.logging_first_step):
        return True
    if training.logging_strategy == "steps":
        return step % training.logging_steps == 0
    return training.logging_strategy == "epoch" and new_epoch


def is_evaluated(training: TrainingParams, step: int, total_steps: int, *, new_epoch: bool) -> bool:
    """Whether an evaluation follows a step, where there is something to evaluate on."""
    due = training.eval_strategy == "steps" and step % training.eval_steps == 0
    return step == total_steps or due or (training.eval_strategy == "epoch" and new_epoch)


def is_saved(training: TrainingParams, step: int, *, new_epoch: bool) -> bool:
    """Whether a checkpoint follows a step, whatever an evaluation says."""
    return bool(training.save_steps and step % training.save_steps == 0) or (training.save_epoch and new_epoch)
