"""The run's curves for TensorBoard, in ``tensorboard/`` of the run folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.utils.tensorboard import SummaryWriter

    from graftwork.runs.run import Run

log = logging.getLogger("graftwork.runs")

# Where a metric stands in TensorBoard, whose groups are what is in front of the slash.
_EVALUATION = "eval_"
_WRITER = "_tensorboard_writer"


def open_writer(run: Run) -> None:
    """Opens the run's writer. What an earlier sitting wrote after the step that this one begins at is hidden.

    Does nothing where the configuration says so, and gives one notice where TensorBoard is not installed.
    """
    if not run.config.training.enable_tensorboard:
        return
    writer_class = _writer_class()
    if writer_class is None:
        log.info("no TensorBoard curves: the package tensorboard is not installed (pip install tensorboard)")
        return
    purge = run.start_step + 1 if run.start_step else 0
    setattr(run, _WRITER, writer_class(str(run.folder / "tensorboard"), purge_step=purge))


def write(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of a step or an evaluation, and has them on the disk should the run be killed."""
    writer = getattr(run, _WRITER, None)
    if writer is None:
        return
    group = "eval" if any(name.startswith(_EVALUATION) for name in metrics) else "train"
    for name, value in metrics.items():
        if name != "step" and _is_number(value):
            writer.add_scalar(f"{group}/{name.removeprefix(_EVALUATION)}", value, global_step=step)
    writer.flush()


def close_writer(run: Run) -> None:
    """Writes what is pending and lets go of the writer."""
    writer = getattr(run, _WRITER, None)
    if writer is not None:
        writer.close()
        delattr(run, _WRITER)


def _writer_class() -> type[SummaryWriter] | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
