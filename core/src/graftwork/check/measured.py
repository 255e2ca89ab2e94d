"""The measured peak of a run that has ended, with the forecast beside it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.training import TrainRequest

logger = logging.getLogger(__name__)
SMALLEST = 128 << 20
"""Bytes below which a peak is mostly code that was not read at import: a forecast would not be held against it."""


def record_memory(request: TrainRequest, *, interrupted: bool) -> None:
    """``memory`` in run.json, where the trainer said what there was before its model (``before_model_bytes``).

    Nothing here may fail a run that has ended well, and neither may a signal that comes meanwhile.
    """
    if "before_model_bytes" not in request.run.record:
        return
    try:
        try:
            found = memory_of(request, interrupted=interrupted)
        except (Exception, KeyboardInterrupt) as error:
            reason = f"{type(error).__name__}: {error}"
            found = {"not_measured": reason}
            logger.warning("the memory of the run is not recorded: %s", reason)
        request.run.update(memory=found)
    except Exception as error:
        logger.warning("the memory of the run is not written to run.json: %s: %s", type(error).__name__, error)


def memory_of(request: TrainRequest, *, interrupted: bool) -> dict[str, Any]:
    """On a CPU the resident memory at the peak less what it was before the model, on CUDA the allocator's peak."""
    import torch

    from graftwork.runs.memory import peak_memory_bytes

    record = request.run.record
    device, before = torch.device(record["device"]), int(record["before_model_bytes"])
    peak = peak_memory_bytes(device) - before
    found: dict[str, Any] = {"device": str(device), "before_model_bytes": before, "peak_bytes": peak, "forecast": None}
    if reason := why_not(peak, interrupted=interrupted):
        return {**found, "not_forecast": reason}
    return {**found, **forecast(request)}


def why_not(peak: int, *, interrupted: bool) -> str | None:
    """Why no forecast is made."""
    from graftwork.launch import Place

    if interrupted:
        return "the run was stopped"
    if Place.here().size > 1:
        return "the forecast is for one process"
    return f"less than {SMALLEST >> 20} MiB" if peak < SMALLEST else None


def forecast(request: TrainRequest) -> dict[str, Any]:
    """What ``graft check`` says of the same configuration."""
    from graftwork.check.check import quiet
    from graftwork.check.memory import as_plain, forecast_of
    from graftwork.check.subject import SAMPLE, Subject, reason_of

    try:
        with quiet():
            return {"forecast": as_plain(forecast_of(Subject.of(request.config, SAMPLE, only="train")))}
    except Exception as error:
        return {"not_forecast": reason_of(error)}
