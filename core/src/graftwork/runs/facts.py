"""What the head of a report says: what was trained, and what came out, in a few large numbers."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.runs import words
from graftwork.runs.curves import finite, smooth
from graftwork.runs.reading import is_number, lookup, points

if TYPE_CHECKING:
    from graftwork.runs.curves import Point
    from graftwork.runs.reading import RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A number with its name, its unit and one line that puts it in proportion."""

    label: str
    value: str
    unit: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How the run ended: ``tone`` is good, warn or bad; ``detail`` what stopped it."""

    text: str
    tone: str
    detail: str = ""


_STATUS = {
    "finished": ("finished", "good"),
    "completed": ("finished", "good"),
    "interrupted": ("interrupted", "warn"),
    "running": ("not finished", "warn"),
    "failed": ("failed", "bad"),
}


def status(run: RunRecord) -> Status:
    """How it ended. A run that never said so was killed, or still runs."""
    text, tone = _STATUS.get(str(run.info.get("status", "running")).casefold(), (str(run.info.get("status")), "warn"))
    error = run.info.get("error") or lookup(run.info, "result.error", "")
    return Status(text=text, tone=tone, detail=str(error))


def title(run: RunRecord) -> str:
    return str(run.setting("training.run_name") or run.folder.resolve().name)


def sentence(run: RunRecord) -> list[tuple[str, bool]]:
    """What was trained on what, as parts of a sentence; True marks the names in it."""
    model = short_name(str(run.info.get("model") or run.setting("model.model_name", "a model")))
    fresh = run.setting("model.load_pretrained_weights", True) is False
    parts = [("Trained " if fresh else "Fine-tuned ", False), (model, True)]
    parts.append((" from scratch" if fresh else "", False))
    if run.setting("training.use_peft"):
        parts.append((f" with LoRA of rank {run.setting('peft.lora_r', '?')}", False))
    names = _datasets(run)
    if names:
        parts.append((" on ", False))
        parts.append((", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""), True))
    return [part for part in parts if part[0]]


def short_name(name: str) -> str:
    """A Hub id or preset as it is, a folder by its last part that says something."""
    if not name.startswith(("/", ".", "~")):
        return name
    parts = [part for part in Path(name).parts if part not in ("/", ".", "..", "~", "final")]
    return parts[-1] if parts else name


def _datasets(run: RunRecord) -> list[str]:
    entries = run.setting("data.train.datasets", [])
    found = []
    for entry in entries if isinstance(entries, list) else []:
        path = lookup(entry, "dataset_path")
        found.append(Path(str(path)).name if path else str(lookup(entry, "dataset_name", "?")))
    return list(dict.fromkeys(found))


def subtitle(run: RunRecord) -> list[str]:
    """When, for how long, on what."""
    started = words.moment(run.info.get("started"))
    seconds = duration_s(run)
    device, dtype = run.info.get("device"), run.info.get("dtype")
    parts = [
        f"{started.day} {started:%B %Y, %H:%M}" if started else "",
        words.duration(seconds) if seconds else "",
        " · ".join(str(part).removeprefix("torch.") for part in (device, dtype) if part),
        f"seed {run.info['seed']}" if "seed" in run.info else "",
    ]
    return [part for part in parts if part]


def duration_s(run: RunRecord) -> float | None:
    """From start to finish by the clock, else the time that the steps took; None without either."""
    started, finished = words.moment(run.info.get("started")), words.moment(run.info.get("finished"))
    if started and finished and (started.tzinfo is None) == (finished.tzinfo is None) and finished >= started:
        return (finished - started).total_seconds()
    return sum(value for _, value in finite(run.curve("step_time_s"))) or None


def best_evaluation(run: RunRecord) -> Point | None:
    """The lowest evaluation."""
    evaluations = finite(points(run.evaluations, "eval_loss"))
    return min(evaluations, key=lambda point: point[1]) if evaluations else None


def smoothing_span(count: int) -> int:
    """Over how many steps the loss is averaged: enough to calm it, few enough to see it turn."""
    return max(1, min(count // 20, 200))


def facts(run: RunRecord) -> list[Fact]:
    """The numbers, the most important first; what was not measured is left out."""
    made = [_held_out(run), _training_loss(run), _tokens(run), _speed(run), _time(run), _memory(run), _weights(run)]
    return [fact for fact in made if fact]


def _held_out(run: RunRecord) -> Fact | None:
    best = best_evaluation(run)
    if best is None:
        return None
    evaluations = finite(points(run.evaluations, "eval_loss"))
    first, last = evaluations[0], evaluations[-1]
    details = []
    if first[0] < best[0]:
        details.append(f"from {words.number(first[1])} ({words.change(first[1], best[1])})")
    if last[0] != best[0]:
        details.append(f"best at step {best[0]:,}, {words.number(last[1])} at the end")
    elif best[1] < 20:
        details.append(f"perplexity {words.number(math.exp(best[1]))}")
    return Fact(label="Held-out loss", value=words.number(best[1]), unit="nat/token", detail=", ".join(details))


def _training_loss(run: RunRecord) -> Fact | None:
    losses = run.curve("loss")
    numbers = finite(losses)
    if not losses:
        return None
    if not math.isfinite(losses[-1][1]):
        before = f"{words.number(numbers[-1][1])} at step {numbers[-1][0]:,}, the last number" if numbers else ""
        return Fact(label="Training loss", value=words.number(losses[-1][1]), detail=before)
    first, last = numbers[0][1], smooth(numbers, smoothing_span(len(numbers)))[-1][1]
    fell = f"from {words.number(first)} ({words.change(first, last)})" if len(numbers) > 1 else ""
    return Fact(label="Training loss", value=words.number(last), unit="nat/token", detail=fell)


def _tokens(run: RunRecord) -> Fact | None:
    steps = run.train[-1]["step"] if run.train else 0
    total = sum(value for _, value in finite(run.curve("tokens")))
    if not steps:
        return None
    planned = run.info.get("total_steps", run.setting("training.max_steps", -1))
    of = f" of {planned:,}" if is_number(planned) and planned > steps else ""
    detail = f"{words.count(total)} tokens" if total else ""
    return Fact(label="Steps", value=f"{steps:,}", unit=of, detail=detail)


def _speed(run: RunRecord) -> Fact | None:
    rates = [value for _, value in finite(run.curve("tokens_per_s"))]
    if not rates:
        return None
    times = [value for _, value in finite(run.curve("step_time_s"))]
    detail = f"{words.duration(statistics.median(times))} a step" if times else ""
    return Fact(label="Speed", value=words.count(statistics.median(rates)), unit="tokens/s", detail=detail)


def _time(run: RunRecord) -> Fact | None:
    seconds = duration_s(run)
    return Fact(label="Time", value=words.duration(seconds)) if seconds else None


def _memory(run: RunRecord) -> Fact | None:
    measured, forecast = lookup(run.info, "memory.peak_bytes"), lookup(run.info, "memory.forecast.total_bytes")
    if is_number(measured) and measured > 0:
        value, unit = words.memory(measured)
        said = [f"forecast {' '.join(words.memory(forecast))} ({forecast / measured - 1:+.0%})"] if forecast else []
        if before := before_model_bytes(run):
            said.append(f"without the {' '.join(words.memory(before))} before the model")
        return Fact(label="Peak memory", value=value, unit=unit, detail=", ".join(said))
    peaks = [value for _, value in finite(run.curve("peak_memory_bytes"))]
    if not peaks or max(peaks) <= 0:
        return None
    value, unit = words.memory(max(peaks))
    return Fact(label="Peak memory", value=value, unit=unit)


def before_model_bytes(run: RunRecord) -> float:
    """What the process held before its model, which its forecast and its peak leave out; 0 where that is unknown."""
    before = lookup(run.info, "memory.before_model_bytes")
    return float(before) if is_number(before) and before > 0 else 0.0


def _weights(run: RunRecord) -> Fact | None:
    trained, total = run.info.get("trained_parameters"), run.info.get("num_parameters")
    if not is_number(trained) or not is_number(total) or not total:
        return None
    share = f"all of {words.count(total)}" if trained == total else _share(float(trained or 0), float(total))
    return Fact(label="Trained weights", value=words.count(float(trained or 0)), detail=share)


def _share(trained: float, total: float) -> str:
    percent: Any = 100 * trained / total
    return f"{percent:.2g} % of {words.count(total)}" if percent < 10 else f"{percent:.0f} % of {words.count(total)}"
