"""Curves as small SVG paths: thinned, smoothed, scaled, with axes that can be read.

Every coordinate is a percentage of the plot, x from the left and y from the top, so that the page can stretch
the plot while the text beside it keeps its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from graftwork.runs import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# More points than this are not seen on a screen; a curve of more becomes a band of lowest to highest.
MOST_POINTS = 600

Point = tuple[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One measured quantity over the steps, in order. Values may be NaN or infinite: those become gaps."""

    label: str
    points: Sequence[Point]
    style: Literal["line", "raw", "dots"] = "line"
    tone: str = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What a chart measures. ``show`` writes a measured value, ``tick`` a round one at the axis; ``from_zero``
    where only the height above zero tells anything.
    """

    name: str
    title: str
    show: Callable[[float], str]
    tick: Callable[[float], str]
    unit: str = ""
    from_zero: bool = False
    ticks: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on an axis: its place in percent of the plot and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point worth a word of its own, such as the best evaluation."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A curve as SVG paths; ``area`` is the band of a thinned raw curve, ``last`` its last number as text.
    ``lone`` is a curve of one point, which no line would show.
    """

    label: str
    tone: str
    style: str
    last: str
    path: str
    area: str = ""
    lone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """All the page needs to show one chart. ``data`` is what the crosshair reads out."""

    name: str
    title: str
    unit: str
    curves: list[Drawn]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    data: dict[str, Any]
    marks: list[Mark] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to percent of an axis."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return 50.0
        return 100.0 * (value - self.low) / (self.high - self.low)


def finite(points: Iterable[Point]) -> list[Point]:
    """The points that can be drawn."""
    return [point for point in points if math.isfinite(point[1])]


def smooth(points: Sequence[Point], span: int) -> list[Point]:
    """The mean of the ``span`` points around each; fewer at the start, where a loss falls too steeply for more,
    and at the end, where there are no more. A point that is not finite stays as it is.
    """
    sums, counts = [0.0], [0]
    for _, value in points:
        sums.append(sums[-1] + (value if math.isfinite(value) else 0.0))
        counts.append(counts[-1] + math.isfinite(value))
    smoothed: list[Point] = []
    for at, (step, value) in enumerate(points):
        half = min(span // 2, at)
        low, high = at - half, min(at + half + 1, len(points))
        mean = (sums[high] - sums[low]) / (counts[high] - counts[low]) if math.isfinite(value) else value
        smoothed.append((step, mean))
    return smoothed


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points: the last of each stretch, NaN where all of a stretch is."""
    stretches = _stretches(points, most)
    return [next((p for p in reversed(stretch) if math.isfinite(p[1])), stretch[-1]) for stretch in stretches]


def band(points: Sequence[Point], most: int = MOST_POINTS // 2) -> list[tuple[int, float, float]]:
    """The lowest and highest value of each stretch of steps; stretches without a number are left out."""
    bands = []
    for stretch in _stretches(points, most):
        values = [value for _, value in stretch if math.isfinite(value)]
        if values:
            bands.append((stretch[len(stretch) // 2][0], min(values), max(values)))
    return bands


def _stretches(points: Sequence[Point], most: int) -> list[Sequence[Point]]:
    size = max(1, math.ceil(len(points) / most))
    return [points[start : start + size] for start in range(0, len(points), size)]


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers, a step of 1, 2, 2.5 or 5 times a power of ten apart, inside ``low`` to ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [(first + place) * step for place in range(count)]


def draw(curve: Curve, x: Scale, y: Scale, show: Callable[[float], str]) -> Drawn:
    """The curve's paths in percent."""
    path, area = "", ""
    if curve.style == "dots":
        path = "".join(f"M{x(step):.2f} {100 - y(value):.2f}h0" for step, value in finite(curve.points))
    elif curve.style == "raw" and len(curve.points) > MOST_POINTS:
        area = _area(curve, x, y)
    else:
        path = _line(thin(curve.points), x, y)
    last = show(curve.points[-1][1])
    lone = len(finite(curve.points)) == 1
    return Drawn(label=curve.label, tone=curve.tone, style=curve.style, last=last, path=path, area=area, lone=lone)


def _line(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """A path with a gap wherever a value is not finite; a point between two gaps is a dot."""
    parts: list[str] = []
    pen_down = False
    for step, value in points:
        if math.isfinite(value):
            place = f"{x(step):.2f} {100 - y(value):.2f}"
            parts.append(f"L{place}" if pen_down else f"M{place}h0")
        pen_down = math.isfinite(value)
    return "".join(parts)


def _area(curve: Curve, x: Scale, y: Scale) -> str:
    bands = band(curve.points)
    upper = [f"{x(step):.2f} {100 - y(high):.2f}" for step, _, high in bands]
    lower = [f"{x(step):.2f} {100 - y(low):.2f}" for step, low, _ in reversed(bands)]
    return f"M{'L'.join([*upper, *lower])}Z" if bands else ""


def chart(
    axis: Axis, curves: Sequence[Curve], steps: tuple[int, int], *, best: Point | None = None, note: str = ""
) -> Chart | None:
    """A chart of all ``curves`` that have a drawable point, or None without one.

    ``steps`` are the first and last step of the run, so that all its charts have the same x axis.
    """
    drawable = [curve for curve in curves if finite(curve.points)]
    if not drawable:
        return None
    x = Scale(low=steps[0], high=steps[1])
    y, y_ticks = _y_axis(drawable, axis)
    marks = [Mark(x=x(best[0]), y=100 - y(best[1]), text=axis.show(best[1]))] if best else []
    return Chart(
        name=axis.name,
        title=axis.title,
        unit=axis.unit,
        curves=[draw(curve, x, y, axis.show) for curve in drawable],
        x_ticks=x_axis(x),
        y_ticks=y_ticks,
        data=_crosshair([curve for curve in drawable if curve.style != "dots"], axis.show, x, y),
        marks=marks,
        note=note,
    )


def _y_axis(curves: Sequence[Curve], axis: Axis) -> tuple[Scale, list[Tick]]:
    values = [value for curve in curves for _, value in finite(curve.points)]
    low, high = (min(0.0, *values) if axis.from_zero else min(values)), max(values)
    if high == low:
        low, high = low - abs(low) * 0.5 - 1e-12, high + abs(high) * 0.5 + 1e-12
    margin = 0.06 * (high - low)
    scale = Scale(low=low if axis.from_zero else low - margin, high=high + margin)
    ticks = nice_ticks(scale.low, scale.high, axis.ticks)
    return scale, [Tick(at=100 - scale(value), text=axis.tick(value)) for value in ticks]


def x_axis(x: Scale) -> list[Tick]:
    """Whole steps, thinned to what fits on a phone."""
    if x.low == x.high:
        return [Tick(at=50.0, text=words.round_count(x.low))]
    ticks = [value for value in nice_ticks(x.low, x.high, 5) if value == int(value)]
    return [Tick(at=x(value), text=words.round_count(value)) for value in ticks]


def _crosshair(curves: Sequence[Curve], show: Callable[[float], str], x: Scale, y: Scale) -> dict[str, Any]:
    """The range of both axes, and per curve its tone and thinned points as (step, height in percent, text)."""
    series = []
    for curve in curves:
        points = [
            [step, round(100 - y(value), 2), show(value)] if math.isfinite(value) else [step, None, str(value)]
            for step, value in thin(curve.points)
        ]
        series.append({"tone": curve.tone, "points": points})
    return {"from": x.low, "to": x.high, "low": y.low, "high": y.high, "series": series}
