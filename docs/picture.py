"""Draws the README's picture, the two loss curves of a quickstart, from what the run wrote.

``python docs/picture.py graftwork-quickstart/run-1`` writes ``docs/quickstart.svg``.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Point = tuple[float, float]

PANEL_WIDTH, PANEL_HEIGHT, GAP, MARGIN = 400, 220, 60, 44
SMOOTHING = 0.02
"""Share of the steps that one point of the training curve is the average of."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-size: 14px; font-weight: 600; fill: #24292f }
.grid { stroke: #d0d7de; stroke-width: 1 }
.counts { stroke: #8c959f; stroke-width: 1; stroke-dasharray: 4 4 }
.train { fill: none; stroke: #6e9fd8; stroke-width: 1.5 }
.held { fill: none; stroke: #c4581b; stroke-width: 2 }
.dot { fill: #c4581b } .held-text { fill: #c4581b }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 } .title { fill: #f0f6fc } .grid { stroke: #3d444d }
  .held { stroke: #f0883e } .dot { fill: #f0883e } .held-text { fill: #f0883e }
}
"""


@dataclass(frozen=True)
class Panel:
    """One training run: its curve, its evaluations, and where it stands in the picture."""

    title: str
    train: Sequence[Point]
    held_out: Sequence[Point]
    left: int
    word_counts: float | None = None
    """The loss of guessing by how often each token occurs."""

    @property
    def steps(self) -> float:
        return max(step for step, _ in (*self.train, *self.held_out))

    @property
    def lowest(self) -> float:
        return math.floor(2 * min(loss for _, loss in (*self.train, *self.held_out))) / 2

    @property
    def highest(self) -> float:
        return math.ceil(2 * max(loss for _, loss in (*self.train, *self.held_out))) / 2

    def at(self, point: Point) -> Point:
        """Where a step and a loss are in the picture."""
        step, loss = point
        x = self.left + PANEL_WIDTH * step / self.steps
        y = MARGIN + PANEL_HEIGHT * (self.highest - loss) / (self.highest - self.lowest)
        return round(x, 1), round(y, 1)


def main(arguments: Sequence[str]) -> int:
    """Draws the run in the folder that is given."""
    folder = Path(arguments[0])
    entropy = json.loads((folder / "results.json").read_text(encoding="utf-8"))["unigrams"]["entropy"]
    second = MARGIN + PANEL_WIDTH + GAP
    panels = [
        replace(read(folder / "pretrain", "Pretraining, nat per token", MARGIN), word_counts=entropy),
        read(folder / "finetune", "Fine-tuning with LoRA, nat per token of the answers", second),
    ]
    target = Path(__file__).parent / "quickstart.svg"
    target.write_text(picture(panels), encoding="utf-8")
    sys.stdout.write(f"wrote {target}\n")
    return 0


def read(run: Path, title: str, left: int) -> Panel:
    """A run's metrics as a panel."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = smooth([(row["step"], row["loss"]) for row in rows if "loss" in row])
    return Panel(title, train, [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row], left)


def smooth(points: Sequence[Point]) -> list[Point]:
    """Averages of neighbouring steps, each at the middle of its steps."""
    size = max(1, round(SMOOTHING * len(points)))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [tuple(sum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]


def picture(panels: Sequence[Panel]) -> str:
    """The whole SVG."""
    width, height = panels[-1].left + PANEL_WIDTH + MARGIN, PANEL_HEIGHT + 2 * MARGIN
    box = f'viewBox="0 0 {width} {height}" role="img" aria-label="{label(panels)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, f"<style>{STYLE}</style>", *(line for panel in panels for line in draw(panel)), "</svg>\n"])


def label(panels: Sequence[Panel]) -> str:
    """What the picture shows, in words."""
    falls = (
        f"{panel.title}: from {panel.held_out[0][1]:.2f} to {panel.held_out[-1][1]:.2f} held out" for panel in panels
    )
    return "; ".join(falls)


def draw(panel: Panel) -> list[str]:
    """One panel's lines."""
    right, bottom = panel.left + PANEL_WIDTH, MARGIN + PANEL_HEIGHT
    return [
        f'<text class="title" x="{panel.left}" y="{MARGIN - 18}">{panel.title}</text>',
        *grid(panel),
        *counted(panel),
        f'<text x="{right}" y="{bottom + 20}" text-anchor="end">{panel.steps:,.0f} steps</text>',
        f'<polyline class="train" points="{joined(panel, panel.train)}"/>',
        # Between two evaluations alone nothing is known.
        *([f'<polyline class="held" points="{joined(panel, panel.held_out)}"/>'] if len(panel.held_out) > 2 else []),
        *(mark(panel, point, anchor) for point, anchor in zip(ends(panel), ("start", "end"), strict=True)),
    ]


def grid(panel: Panel) -> list[str]:
    """Horizontal lines at whole losses, or at halves where there are few."""
    step = 1.0 if panel.highest - panel.lowest > 3 else 0.5
    first = math.ceil(panel.lowest / step)
    losses = [step * number for number in range(first, math.floor(panel.highest / step) + 1)]
    return [
        f'<line class="grid" x1="{panel.left}" x2="{panel.left + PANEL_WIDTH}" y1="{y}" y2="{y}"/>'
        f'<text x="{panel.left - 8}" y="{y + 4}" text-anchor="end">{loss:g}</text>'
        for loss in losses
        for _, y in [panel.at((0, loss))]
    ]


def counted(panel: Panel) -> list[str]:
    """The line that a model has to come under before it has learned anything but the words."""
    if panel.word_counts is None:
        return []
    _, y = panel.at((0, panel.word_counts))
    right = panel.left + PANEL_WIDTH
    return [
        f'<line class="counts" x1="{panel.left}" x2="{right}" y1="{y}" y2="{y}"/>'
        f'<text x="{right}" y="{y - 6}" text-anchor="end">token frequencies alone {panel.word_counts:.2f}</text>'
    ]


def joined(panel: Panel, points: Sequence[Point]) -> str:
    """Points as SVG wants them."""
    return " ".join(f"{x},{y}" for x, y in map(panel.at, points))


def ends(panel: Panel) -> tuple[Point, Point]:
    """The first and the last evaluation."""
    return panel.held_out[0], panel.held_out[-1]


def mark(panel: Panel, point: Point, anchor: str) -> str:
    """A dot with its loss written above it."""
    x, y = panel.at(point)
    aside = 8 if anchor == "start" else 0
    text = f'<text class="held-text" x="{x + aside}" y="{y - 8}" text-anchor="{anchor}">held out {point[1]:.2f}</text>'
    return f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"/>{text}'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
