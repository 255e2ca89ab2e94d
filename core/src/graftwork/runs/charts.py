"""Which curves a report shows, and how."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graftwork.runs import words
from graftwork.runs.curves import Axis, Chart, Curve, chart, smooth
from graftwork.runs.facts import before_model_bytes, best_evaluation, smoothing_span
from graftwork.runs.reading import points

if TYPE_CHECKING:
    from graftwork.runs.curves import Point
    from graftwork.runs.reading import RunRecord


def loss_chart(run: RunRecord) -> Chart | None:
    """The training loss, raw and smoothed, and the evaluations with the best one marked."""
    losses, evaluations = run.curve("loss"), points(run.evaluations, "eval_loss")
    span = smoothing_span(len(losses))
    curves = [Curve(label="each step", points=losses, style="raw" if span > 1 else "line")]
    if span > 1:
        curves.append(Curve(label=f"average of {span} steps", points=smooth(losses, span)))
    if evaluations:
        curves.append(Curve(label="held out", points=evaluations, tone="held"))
        curves.append(Curve(label="", points=evaluations, style="dots", tone="held"))
    axis = Axis(name="loss", title="Loss", unit="nat per token", show=words.number, tick=words.round_number, ticks=6)
    return chart(axis, curves, _steps(run), best=best_evaluation(run), note=_not_finite(losses))


def small_charts(run: RunRecord) -> list[Chart]:
    """Learning rate, gradient, speed and memory, as far as they were measured."""
    memory = run.curve("peak_memory_bytes")
    largest = max((value for _, value in memory if math.isfinite(value)), default=0.0)
    size, unit = (words.GIB, "GiB") if largest >= words.GIB else (words.MIB, "MiB")
    rate = Axis(
        name="rate", title="Learning rate", show=words.scientific, tick=words.scientific, from_zero=True
    )  # fmt: skip
    norm = Axis(name="norm", title="Gradient norm", show=words.number, tick=words.round_number, from_zero=True)
    speed = Axis(
        name="speed", title="Speed", unit="tokens/s", show=words.count, tick=words.round_count, from_zero=True
    )  # fmt: skip
    title = "Peak memory of the whole process" if before_model_bytes(run) else "Peak memory"
    held = Axis(
        name="memory", title=title, unit=unit, show=words.number, tick=words.round_number, from_zero=True
    )  # fmt: skip
    drawn = [
        chart(rate, [Curve(label="", points=run.curve("learning_rate"))], _steps(run)),
        chart(norm, _calmed(run.curve("grad_norm")), _steps(run)),
        chart(speed, _calmed(run.curve("tokens_per_s")), _steps(run)),
        chart(held, [Curve(label="", points=[(step, value / size) for step, value in memory])], _steps(run)),
    ]
    return [each for each in drawn if each]


def _calmed(measured: list[Point]) -> list[Curve]:
    """A noisy quantity, behind its average."""
    span = smoothing_span(len(measured))
    if span == 1:
        return [Curve(label="", points=measured)]
    return [
        Curve(label="each step", points=measured, style="raw"),
        Curve(label="average", points=smooth(measured, span)),
    ]


def _steps(run: RunRecord) -> tuple[int, int]:
    steps = [row["step"] for row in (*run.train, *run.evaluations)]
    return min(steps, default=0), max(steps, default=0)


def _not_finite(losses: list[Point]) -> str:
    """What the gaps in the curve are."""
    broken = [step for step, value in losses if not math.isfinite(value)]
    if not broken:
        return ""
    where = f"at step {broken[0]:,}" if len(broken) == 1 else f"at {len(broken):,} steps, first at {broken[0]:,}"
    return f"The loss was not a number {where}."
