"""The chart of docs/performance.md is what its tables give, and what its benchmark takes away was there."""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import torch

from graftwork_native import attention, forward, loss, memory, products, setup

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parent.parent
SCRIPT, PAGE, CHART = (ROOT / "docs" / name for name in ("chart.py", "performance.md", "performance.svg"))
CHANGED = [
    (attention, "MATMUL_LIMIT"),
    (forward.Forward, "logits"),
    (loss, "BLOCK_BYTES"),
    (loss, "softmax_grad_"),
    (memory, "set_option"),
    (products, "PIECE_QUERIES"),
    (setup, "keeps_gradients"),
    (setup, "plan_forward"),
]


@pytest.fixture(scope="module")
def chart() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def contender(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's process; what it replaces is put back afterwards."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for owner, name in CHANGED:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    return importlib.import_module("contender_ablation")


def test_the_chart_is_what_the_tables_give() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"]({CHART.name})" in PAGE.read_text(encoding="utf-8")


def test_another_number_is_another_chart(
    chart: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / PAGE.name
    page.write_text(PAGE.read_text(encoding="utf-8").replace("| TRL, packed | ", "| TRL, packed | 1"), encoding="utf-8")
    monkeypatch.setitem(chart["main"].__globals__, "PAGE", page)
    assert chart["main"](["--check"]) == 1
    assert (
        capsys.readouterr().out == "performance.svg is not what the tables of performance.md give: call `make docs`\n"
    )


def test_a_bar_is_as_long_as_its_number(chart: dict[str, Any]) -> None:
    page = """
| trainer | tokens/s | graftwork is faster by | peak memory |
|---|---:|---:|---:|
| one | 2,000 |  | 1 GiB |
| two | 500 | 4 x | 2 GiB |

| without | tokens/s |
|---|---:|
| nothing | 100 |
| a | 125 |
| b & c | 50 |

| part of a step | time | share |
|---|---:|---:|
| mm | 0.4 s | 80% |
| rest | 0.1 s | 20% |
"""
    drawn = chart["panels"](page)
    bars = [[(bar.name, bar.length, bar.said) for bar in panel.bars] for panel in drawn]
    assert bars == [
        [("one", 1.0, "2,000 tokens/s, 1 GiB"), ("two", 0.25, "500 tokens/s, 2 GiB")],
        [("nothing", 0.8, "100%"), ("a", 1.0, "125%"), ("b & c", 0.4, "50%")],
        [("mm", 1.0, "80%"), ("rest", 0.25, "20%")],
    ]
    widths = [float(found) for found in re.findall(r'<rect [^>]* width="([\d.]+)"', chart["picture"](drawn))]
    assert widths == [chart["BARS"] * length for panel in bars for _, length, _ in panel]


def test_the_chart_can_be_read(chart: dict[str, Any]) -> None:
    """It is XML, says in words what it shows, has every row of its tables in its frame, and colours for the dark."""
    root = ElementTree.parse(CHART).getroot()
    width, height = map(int, root.attrib["viewBox"].split()[2:])
    page = PAGE.read_text(encoding="utf-8")
    names = [row[0] for first in ("trainer", "without", "part of a step") for row in chart["rows_of"](page, first)]
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert set(names) <= {text.text for text in texts}
    assert [name for name in names if name not in root.attrib["aria-label"]] == []
    for text in texts:
        letters = 7 * len(text.text or "")
        ends = text.attrib.get("text-anchor") == "end"
        left = float(text.attrib["x"]) - (letters if ends else 0)
        assert (left >= 0, left + letters <= width, float(text.attrib["y"]) <= height) == (True, True, True), text.text
    light, dark = CHART.read_text(encoding="utf-8").split("@media (prefers-color-scheme: dark)")
    kinds = {".first", ".first-text", ".title", "text"}
    assert all(f"{kind} {{" in light for kind in kinds)
    assert all(re.search(rf"{re.escape(kind)}[ ,]", dark.partition("</style>")[0]) for kind in kinds)


def test_a_page_without_the_table_is_refused(chart: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"performance\.md has no table whose first column is called 'without'"):
        chart["rows_of"]("| trainer | tokens/s |\n", "without")


def test_what_the_benchmark_takes_away_was_there(contender: ModuleType) -> None:
    before = [getattr(owner, name) for owner, name in CHANGED]
    for without in contender.TAKEN.values():
        without.replace()
    assert all(getattr(owner, name) is not old for (owner, name), old in zip(CHANGED, before, strict=True))
    with pytest.raises(AttributeError, match="no_such_thing"):
        contender.swap(loss, "no_such_thing", None)


def test_the_softmax_in_passes_is_that_in_one(contender: ModuleType) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 11), torch.tensor([0, 3, 3, 10, 7])
    ours, theirs = logits.clone(), logits.clone()
    expected = loss.softmax_grad_(ours, labels)
    contender.softmax_in_passes()
    torch.testing.assert_close(loss.softmax_grad_(theirs, labels), expected)
    torch.testing.assert_close(theirs, ours)
