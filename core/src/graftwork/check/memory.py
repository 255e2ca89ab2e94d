"""The part of a check about memory and disk: what the run will take, and what there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.check.disk import amount, disk
from graftwork.check.forecast import Forecast, ForecastRequest
from graftwork.check.report import Part
from graftwork.check.subject import reason_of
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from graftwork.check.subject import Subject

WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "reference": "reference model",
    "activations": "activations",
    "copies of weights": "copies of weights in the products' type",
    "logits": "logits",
    "temporary": "temporaries",
    "kernels": "kernels that oneDNN keeps",
    "libraries": "code and objects of libraries",
    "allocator": "gaps in the heap",
}


def memory_part(subject: Subject) -> Part:
    """The forecast of the trainer, beside the memory of this machine; and the disk."""
    part = Part("memory", "Memory and disk")
    name = subject.trainer.name
    forecast = None
    try:
        forecast = forecast_of(subject)
    except Exception as error:
        part.note(f"not forecast for {name}: {reason_of(error)}", cause=reason_of(error))
    part.facts |= {"forecast": None if forecast is None else as_plain(forecast), "available": available()}
    if forecast is not None:
        say_forecast(part, forecast)
        disk(part, subject, forecast)
    return part


def forecast_of(subject: Subject) -> Forecast:
    """What the trainer says. Raises :class:`UsageError` where it says nothing, and what building the model raises."""
    if subject.trainer.forecast is None:
        raise UsageError("this trainer does not say what memory it takes; watch the first steps of a short run")
    if subject.tokenizer is None:
        raise UsageError("there is no tokenizer, so nothing is known of the rows")
    rows = tuple(subject.rows())
    if not rows:
        raise UsageError("no training row could be read")
    return subject.trainer.forecast(ForecastRequest(config=subject.config, params=subject.params, rows=rows))


def as_plain(forecast: Forecast) -> dict[str, Any]:
    """For ``--json`` and ``run.json``; sizes in bytes."""
    return {
        "device": forecast.device,
        "total_bytes": forecast.total,
        "parts": {name.replace(" ", "_"): size for name, size in forecast.parts.items()},
        "tokens": forecast.tokens,
        "checkpoint_bytes": forecast.checkpoint_bytes,
        "final_bytes": forecast.final_bytes,
        "notes": list(forecast.notes),
    }


def available() -> dict[str, Any]:
    """Free bytes of main memory (None where the system does not tell) and of each CUDA device."""
    import torch

    devices = [
        {"name": torch.cuda.get_device_name(index), "free_bytes": torch.cuda.mem_get_info(index)[0]}
        for index in range(torch.cuda.device_count())
    ]
    return {"memory_bytes": free_memory(), "cuda": devices}


def free_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """What the system says that new programs can have."""
    lines = meminfo.read_text("ascii").splitlines() if meminfo.is_file() else []
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return int(found.split()[1]) * 1024 if found else None


def say_forecast(part: Part, forecast: Forecast) -> None:
    """The parts from the largest down, and whether they fit."""
    for note in forecast.notes:
        part.note(note)
    parts = sorted(forecast.parts.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{WORDS.get(name, name)} {amount(size)}" for name, size in parts)
    part.ok(f"the largest forward pass has {forecast.tokens:,} tokens; then there are {listed}")
    there = part.facts["available"]
    free = there["cuda"][0]["free_bytes"] if forecast.device.startswith("cuda") else there["memory_bytes"]
    total = f"{amount(forecast.total)} in all on {forecast.device}"
    if free is None:
        part.note(f"{total}; this system does not say how much is free")
    elif forecast.total > free:
        part.error(
            f"{total}, and {amount(free)} are free: lower per_device_train_batch_size or max_length, set "
            "enable_gradient_checkpointing, or train an adapter (use_peft)"
        )
    elif forecast.total > 0.85 * free:
        part.warn(f"{total}, and {amount(free)} are free: that is close, as the forecast may be 15% off")
    else:
        part.ok(f"{total}; {amount(free)} are free here")
