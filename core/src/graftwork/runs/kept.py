"""Which checkpoints a run keeps: the newest, and those of the best evaluations."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from graftwork.errors import UsageError, did_you_mean
from graftwork.files import remove_folder
from graftwork.runs.checkpoints import damage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.config import TrainingParams
    from graftwork.runs.run import Run

logger = logging.getLogger(__name__)

Best = list[tuple[int, float]]
"""(step, metric) of the best evaluations, the best first."""


def metric_name(training: TrainingParams) -> str:
    """``metric_for_best_model`` as it is logged: ``loss`` means ``eval_loss``, as in transformers."""
    name = training.metric_for_best_model
    return name if name.startswith("eval_") else f"eval_{name}"


def chosen_metric(training: TrainingParams, metrics: Mapping[str, float]) -> float:
    """The metric that ranks an evaluation. Raises :class:`UsageError` where it is not measured."""
    name = metric_name(training)
    if name not in metrics:
        raise UsageError(
            f"training.metric_for_best_model: {training.metric_for_best_model} is not measured in an evaluation; "
            f"{did_you_mean(name, metrics)}"
        )
    return metrics[name]


def greater_is_better(training: TrainingParams) -> bool:
    """As configured; else less is better of a loss, and more of anything else."""
    asked = training.greater_is_better
    return not metric_name(training).endswith("loss") if asked is None else asked


def is_gain(training: TrainingParams, best: Best, metric: float) -> bool:
    """Whether ``metric`` is better than the best before it by more than the threshold, as transformers counts it."""
    if not best or not math.isfinite(metric):
        return math.isfinite(metric)
    gain = metric - best[0][1] if greater_is_better(training) else best[0][1] - metric
    return gain > training.early_stopping_threshold


def ranked(training: TrainingParams, best: Best, step: int, metric: float) -> Best:
    """The best evaluations with a new one among them, if it is. An equal one is behind the earlier."""
    if not math.isfinite(metric):
        return best
    sign = -1.0 if greater_is_better(training) else 1.0
    return sorted([*best, (step, metric)], key=lambda entry: sign * entry[1])[: training.keep_best or 1]


def remove_old(run: Run, best: Best) -> None:
    """Removes what is neither among the newest nor among the best."""
    training = run.config.training
    newest = training.save_total_limit or (1 if training.keep_best else None)
    kept = {f"step-{step}" for step, _ in best}
    for path in run.checkpoints[:-newest] if newest else []:
        if path.name not in kept:
            remove_folder(path)


def best_to_load(run: Run, best: Best, step: int) -> tuple[int, float] | None:
    """The best evaluation whose checkpoint is whole; None where the model at hand, that of ``step``, is the best, or
    none is whole.
    """
    for found, metric in best:
        if found == step:
            return None
        path = run.folder / "checkpoints" / f"step-{found}"
        if (reason := damage(path)) is None:
            return found, metric
        logger.warning("%s is damaged: %s. final/ does not get its weights", path, reason)
    return None


def without_lost(run: Run, best: Best) -> Best:
    """The entries whose checkpoint is still there: not so in a run that goes on from another folder's."""
    there = {path.name for path in run.checkpoints if damage(path, contents=False) is None}
    lost = [step for step, _ in best if f"step-{step}" not in there]
    if lost:
        listed = ", ".join(map(str, lost))
        logger.warning(
            "the best weights so far (step %s) are not in %s; the best from here on is kept", listed, run.folder
        )
    return [entry for entry in best if entry[0] not in lost]
