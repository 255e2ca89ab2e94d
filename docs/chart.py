"""Draws the chart of docs/performance.md, ``docs/performance.svg``, from the tables that stand there.

python docs/chart.py            draw it again
python docs/chart.py --check    exit 1 where it is not what the tables give
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parent / "performance.md"
CHART = PAGE.with_suffix(".svg")

WIDTH, NAMES, BARS, ROW, THICK, TOP, GAP = 800, 300, 310, 24, 14, 34, 26
"""Of the picture, of the column of names, of the longest bar; of a row, of a bar in it; above the bars of a panel, and
between two panels. In pixels."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-size: 14px; font-weight: 600; fill: #24292f }
.bar { fill: #6e9fd8 } .first { fill: #c4581b } .first-text { fill: #24292f }
.full { stroke: #8c959f; stroke-width: 1; stroke-dasharray: 4 4 }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 } .title, .first-text { fill: #f0f6fc } .first { fill: #f0883e }
}
"""


@dataclass(frozen=True)
class Bar:
    """``length`` is a share of the longest bar there is room for."""

    name: str
    length: float
    said: str


@dataclass(frozen=True)
class Panel:
    """Bars below one another. With ``marks_first`` the first is in another colour and has a line down from its end."""

    title: str
    bars: Sequence[Bar]
    marks_first: bool

    @property
    def height(self) -> int:
        return TOP + ROW * len(self.bars) + GAP


def main(arguments: Sequence[str]) -> int:
    """Draws, or checks with ``--check``."""
    drawn = picture(panels(PAGE.read_text(encoding="utf-8")))
    if "--check" in arguments:
        if CHART.is_file() and CHART.read_text(encoding="utf-8") == drawn:
            return 0
        sys.stdout.write(f"{CHART.name} is not what the tables of {PAGE.name} give: call `make docs`\n")
        return 1
    CHART.write_text(drawn, encoding="utf-8")
    return 0


def panels(page: str) -> list[Panel]:
    """What the tables of the page say."""
    return [peers(rows_of(page, "trainer")), ablation(rows_of(page, "without")), parts(rows_of(page, "part of a step"))]


def rows_of(page: str, first: str) -> list[list[str]]:
    """The cells of the first table whose first column has that name, without its head."""
    lines = page.splitlines()
    begin = next((number for number, line in enumerate(lines) if line.startswith(f"| {first} |")), None)
    if begin is None:
        raise SystemExit(f"{PAGE.name} has no table whose first column is called {first!r}")
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def number(cell: str) -> float:
    """``1,676``, ``0.72 s`` and ``43%`` as numbers."""
    return float(cell.removesuffix("s").removesuffix("%").replace(",", ""))


def peers(rows: Sequence[Sequence[str]]) -> Panel:
    """Graftwork beside others."""
    longest = max(number(row[1]) for row in rows)
    bars = [Bar(row[0], number(row[1]) / longest, joined(f"{row[1]} tokens/s", row[3])) for row in rows]
    return Panel("Fine-tuning: graftwork and its peers", bars, True)


def ablation(rows: Sequence[Sequence[str]]) -> Panel:
    """The trainer with one thing taken away; the longer the bar, the less that thing gives."""
    full = number(rows[0][1])
    room = max(number(row[1]) for row in rows)
    bars = [Bar(row[0], number(row[1]) / room, f"{number(row[1]) / full:.0%}") for row in rows]
    return Panel("The speed that is left without one of the optimisations", bars, True)


def parts(rows: Sequence[Sequence[str]]) -> Panel:
    """Where a step's time goes."""
    longest = max(number(row[1]) for row in rows)
    return Panel(
        "Where the time of a step goes", [Bar(row[0], number(row[1]) / longest, row[2]) for row in rows], False
    )


def joined(*texts: str) -> str:
    """Those that say something, with commas between."""
    return ", ".join(text for text in texts if text)


def picture(drawn: Sequence[Panel]) -> str:
    """The whole SVG."""
    height = sum(panel.height for panel in drawn)
    box = f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label(drawn))}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', f"<style>{STYLE}</style>"]
    top = 0
    for panel in drawn:
        lines += draw(panel, top)
        top += panel.height
    return "\n".join([*lines, "</svg>\n"])


def label(drawn: Sequence[Panel]) -> str:
    """What the picture shows, in words."""
    return ". ".join(f"{panel.title}: {'; '.join(f'{bar.name} {bar.said}' for bar in panel.bars)}" for panel in drawn)


def draw(panel: Panel, top: int) -> list[str]:
    """One panel's lines."""
    lines = [f'<text class="title" x="0" y="{top + 18}">{escape(panel.title)}</text>']
    for place, bar in enumerate(panel.bars):
        first = panel.marks_first and place == 0
        lines += draw_bar(bar, top + TOP + ROW * place, first, panel.bars[0].length if panel.marks_first else 0.0)
    if panel.marks_first:
        x, begin = NAMES + round(BARS * panel.bars[0].length, 1), top + TOP + ROW
        end = begin + ROW * (len(panel.bars) - 1)
        lines.append(f'<line class="full" x1="{x}" x2="{x}" y1="{begin}" y2="{end}"/>')
    return lines


def draw_bar(bar: Bar, y: int, first: bool, line: float) -> list[str]:
    """Name, bar, and what is said at its end, or behind the line that stands at ``line``."""
    width, kind, text = max(1.0, round(BARS * bar.length, 1)), "first" if first else "bar", y + THICK - 2
    end = NAMES + max(width, round(BARS * line, 1))
    colour = ' class="first-text"' if first else ""
    return [
        f'<text{colour} x="{NAMES - 10}" y="{text}" text-anchor="end">{escape(bar.name)}</text>',
        f'<rect class="{kind}" x="{NAMES}" y="{y}" width="{width}" height="{THICK}" rx="2"/>',
        f'<text{colour} x="{end + 8:g}" y="{text}">{escape(bar.said)}</text>',
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
