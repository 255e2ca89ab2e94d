"""What happens after a step: said to transformers' loop, written to the run folder."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import TrainerCallback

from graftwork.runs.due import is_evaluated, is_logged, is_saved
from graftwork.runs.kept import chosen_metric

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork_trl.session import Session

UNSAID = ("epoch", "total_flos", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
"""Numbers of transformers that mean nothing here: an epoch of its loop is the whole run."""


class Recorder(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Decides when to log, to evaluate, to save and to stop, and passes metrics on."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock where TRL draws the samples itself; elsewhere it runs from when they are asked for."""
        if self.session.data is None:
            self.session.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the optimizer's step."""
        session, training, step = self.session, self.session.config.training, state.global_step
        session.end_step(step)
        new_epoch, total = session.new_epoch, session.total_steps
        control.should_log = is_logged(training, step, total, new_epoch=new_epoch)
        control.should_evaluate = session.evaluates and is_evaluated(training, step, total, new_epoch=new_epoch)
        control.should_save = is_saved(training, step, new_epoch=new_epoch)
        self._stop(state, control)

    def _stop(self, state: Any, control: Any) -> None:
        """Saves and ends where a signal came, whenever in a step it did."""
        self.session.stopped_by = agreed(self.session.stopped_by)
        if self.session.stopped_by is not None and 0 < state.global_step < self.session.total_steps:
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
        """After an evaluation; the one before the first step says where the run began, and what can be ranked."""
        if not state.global_step:
            chosen_metric(self.session.config.training, metrics)
            return
        gain = self.session.compare(state.global_step, metrics)
        control.should_save = control.should_save or (gain and self.session.config.training.load_best_model_at_end)
        control.should_training_stop = control.should_training_stop or self.session.has_stalled()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """A step's metrics or an evaluation's, under TRL's names; its summary of a run is left out."""
        if "train_runtime" in logs:
            return
        metrics = {name: value for name, value in logs.items() if is_number(value) and name not in UNSAID}
        if "loss" in metrics:
            self.session.last |= metrics
            metrics |= self.session.speed(args.device)
        else:
            metrics = {{"eval_runtime": "eval_time_s"}.get(name, name): value for name, value in metrics.items()}
            self.session.last |= metrics
        if state.is_world_process_zero:
            self.session.run.log(state.global_step, metrics)
        self._stop(state, control)


def agreed(number: int | None) -> int | None:
    """The signal that came to this process or another one of the run: they end after the same step."""
    if not dist.is_initialized():
        return number
    flag = torch.tensor(number or 0, device=PartialState().device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return int(flag) or None


def is_number(value: Any) -> bool:
    """Whether a metric has a value: TRL gives None, or no number, where nothing was measured."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
