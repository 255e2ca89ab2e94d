"""A listener to the events of a run, like any other: ``training.enable_wandb: true`` switches it on.

Where the curves go is Weights & Biases' own matter: ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE=offline``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from graftwork import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.runs.run import Run

_TRACKER = "_wandb_run"


@hookimpl
def graftwork_run_started(run: Run) -> None:
    if not run.config.training.enable_wandb:
        return
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its crash reports to sentry.io
    import wandb

    # One curve for a run that is gone on with; neither the script nor a git diff leaves the machine.
    settings = wandb.Settings(save_code=False, disable_code=True, disable_git=True, silent=True, console="off")
    name = run.config.training.run_name or run.folder.resolve().name
    known = run.record.get("wandb_id")
    tracker = wandb.init(
        id=known, name=name, dir=run.folder, resume="allow", config=run.config.model_dump(), settings=settings
    )
    # An evaluation and the step before it are two lines of one step, which wandb's own counter cannot have
    tracker.define_metric("*", step_metric="step")
    setattr(run, _TRACKER, tracker)
    run.update(wandb_id=tracker.id)


@hookimpl
def graftwork_step_finished(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    if tracker := getattr(run, _TRACKER, None):
        tracker.log({"step": step, **metrics})


@hookimpl
def graftwork_run_finished(run: Run, error: BaseException | None) -> None:
    if tracker := getattr(run, _TRACKER, None):
        tracker.finish(exit_code=0 if error is None else 1)
