"""The report: right numbers, nothing from outside, nothing that runs, and a page for every way a run can end."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest

from graftwork.runs import words
from graftwork.runs.curves import MOST_POINTS, Scale, band, nice_ticks, smooth, thin, x_axis
from graftwork.runs.report import write_report

EVIL = "<script>alert('x')</script>\"'&</pre>{{ 7 * 7 }}\u2028\ud800"


def metrics(steps: int, *, evaluate: int = 0, nan: range = range(0)) -> list[dict]:
    rows = [{"step": 0, "eval_loss": 8.0}] if evaluate else []
    for step in range(1, steps + 1):
        loss = math.nan if step in nan else 2 + 6 / step
        rows.append({
            "step": step, "loss": loss, "learning_rate": 3e-4, "grad_norm": 1.0, "tokens": 1000,
            "supervised_tokens": 400, "tokens_per_s": 500.0, "step_time_s": 2.0, "peak_memory_bytes": 3 * 2**30,
        })  # fmt: skip
        if evaluate and step % evaluate == 0:
            rows.append({"step": step, "eval_loss": 2.5 if step == 2 * evaluate else 3.0})
    return rows


def run_folder(path, rows: list[dict], *, samples: list[dict] = (), config: str = "model:\n  model_name: m\n", **info):
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    (path / "config.yaml").write_text(config)
    (path / "run.json").write_text(json.dumps({"status": "finished", **info}))
    return path


def page(folder) -> str:
    return write_report(folder).read_text("utf-8")


class Reader(HTMLParser):
    """The text a person sees, and every tag with its attributes; an unclosed tag is an error."""

    VOID = frozenset({"meta", "link", "input", "br", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.parts).split())


def test_the_numbers_are_those_of_the_run(tmp_path):
    folder = run_folder(
        tmp_path / "my-run", metrics(100, evaluate=20), num_parameters=42_100_000, trained_parameters=1_200_000,
        started="2026-08-30T14:03:11+00:00", finished="2026-08-30T14:06:23+00:00", device="cpu", seed=42,
    )  # fmt: skip
    text = Reader(page(folder)).text
    for expected in [
        "my-run", "finished", "30 August 2026, 14:03", "3 min 12 s", "cpu", "seed 42",
        "Held-out loss 2.500 nat/token from 8.000 (−69 %), best at step 40, 3.000 at the end", "best 2.500",
        "Steps 100 100 k tokens", "Speed 500 tokens/s 2.0 s a step", "Peak memory 3.00 GiB",
        "Trained weights 1.20 M 2.9 % of 42.1 M",
    ]:  # fmt: skip
        assert expected in text, expected


def test_each_number_of_memory_says_what_it_is_of(tmp_path):
    """The peak that a forecast is held against leaves out what there was before the model; the curve does not."""
    memory = {"peak_bytes": 2 * 2**30, "before_model_bytes": 2**30, "forecast": {"total_bytes": 2 * 2**30}}
    text = Reader(page(run_folder(tmp_path / "cpu", metrics(9), memory=memory))).text
    assert "Peak memory 2.00 GiB forecast 2.00 GiB (+0%), without the 1.00 GiB before the model" in text
    assert "Peak memory of the whole process GiB" in text
    text = Reader(page(run_folder(tmp_path / "cuda", metrics(9), memory={**memory, "before_model_bytes": 0}))).text
    assert "before the model" not in text
    assert "whole process" not in text


def test_the_page_needs_nothing_from_outside(tmp_path):
    html = page(run_folder(tmp_path, metrics(30, evaluate=5)))
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'" in html
    for tag, attributes in Reader(html).tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert not attributes.get("src")
        assert attributes.get("href", "data:,") == "data:,"


def test_every_text_of_the_run_is_escaped(tmp_path):
    samples = [
        {"step": step, "stage": EVIL, "prompt": EVIL, "completion": EVIL, "reference": EVIL} for step in (0, 5, 9)
    ] + [{"step": 9, "prompt": [{"role": EVIL, "content": EVIL}], "completion": None}]
    folder = run_folder(
        tmp_path, metrics(9), samples=samples, config=f"model:\n  model_name: {json.dumps(EVIL)}\n  {EVIL[:-1]}: 1\n",
        model=EVIL, status=EVIL, error=EVIL, device=EVIL, versions={EVIL: EVIL}, data={"train": {EVIL: EVIL}},
    )  # fmt: skip
    (folder / "final").mkdir()
    html = page(folder)
    assert "<script>alert" not in html
    reader = Reader(html)
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert "<script>alert('x')</script>" in reader.text
    assert "{{ 7 * 7 }}" in reader.text
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    moments = next(json.loads(found["data-moments"]) for _, found in reader.tags if "data-moments" in found)
    assert len(moments) == 4


def test_answers_stand_beside_each_other_in_the_order_of_the_run(tmp_path):
    samples = [
        {"step": step, "stage": stage, "prompt": "Q?", "completion": answer, "reference": "right"}
        for step, stage, answer in [(9, "after", "better"), (0, "before", "bad"), (5, "half-way", "so-so")]
    ]
    html = page(run_folder(tmp_path, metrics(9), samples=samples))
    assert Reader(html).text.index("bad") < Reader(html).text.index("so-so") < Reader(html).text.index("better")
    shown = re.findall(r'data-moment="(\d)"( hidden)?>', html)
    assert shown == [("1", " hidden"), ("2", "")]
    assert 'min="1" max="2"' in html
    assert Reader(html).text.count("before · step 0") == 1
    assert "--columns: 3" in html


def test_the_next_commands_fit_what_the_run_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples = [{"step": 1, "stage": "", "prompt": "What's it?", "completion": "x"}]
    folder = run_folder(tmp_path / "my run", metrics(3), samples=samples, status="interrupted", total_steps=9)
    assert "Steps 3 of 9" in Reader(page(folder)).text
    assert "Begin it again graft train -c './my run/config.yaml' --resume" in Reader(page(folder)).text
    (folder / "checkpoints" / "step-3").mkdir(parents=True)
    assert "Go on from the last checkpoint graft train -c" in Reader(page(folder)).text
    (folder / "final").mkdir()
    text = Reader(page(folder)).text
    assert "--resume" not in text
    assert """graft generate './my run/final' --prompt 'What'"'"'s it?'""" in text
    assert "graft chat" not in text
    (folder / "final" / "chat_template.jinja").write_text("x")
    (folder / "final" / "adapter_config.json").write_text("{}")
    text = Reader(page(folder)).text
    assert "graft chat './my run/final'" in text
    assert "graft merge './my run/final' --output-dir './my run/merged'" in text


@pytest.mark.parametrize(("steps", "evaluate"), [(1, 0), (1, 1), (2, 1), (7, 0)])
def test_short_runs_and_runs_without_evaluations(tmp_path, steps, evaluate):
    text = Reader(page(run_folder(tmp_path, metrics(steps, evaluate=evaluate)))).text
    assert ("Held-out loss" in text) == bool(evaluate)
    assert "Training loss" in text


def test_the_only_point_of_a_curve_and_a_point_between_gaps_are_dots(tmp_path):
    html = page(run_folder(tmp_path / "one", metrics(1)))
    assert html.count('class="dots main"') == 5
    broken = metrics(9, nan=range(2, 10, 2))
    html = page(run_folder(tmp_path / "gaps", broken))
    path = re.search(r'class="line main" d="([^"]+)"', html)[1]
    assert path.count("M") == path.count("h0") == 5


def test_a_run_that_broke_says_why(tmp_path):
    folder = run_folder(tmp_path, metrics(60, nan=range(41, 61)), status="failed", error="the disk is full")
    html = page(folder)
    text = Reader(html).text
    assert "failed" in text
    assert "the disk is full" in text
    assert "Training loss NaN 2.150 at step 40, the last number" in text
    assert "The loss was not a number at 20 steps, first at 41." in text
    assert "NaN" not in json.dumps([path for _, a in Reader(html).tags if (path := a.get("d"))])


def test_a_run_of_nothing_but_nan(tmp_path):
    text = Reader(page(run_folder(tmp_path, metrics(5, nan=range(1, 6))))).text
    assert "Training loss NaN" in text
    assert "Learning rate" in text


def test_a_folder_with_nothing_or_with_broken_files_still_gets_a_page(tmp_path):
    assert "nothing to draw" in Reader(page(tmp_path)).text
    folder = run_folder(tmp_path, metrics(3))
    (folder / "run.json").write_text('{"half')
    (folder / "config.yaml").write_text("a: [")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": "x", "loss": 1}\n{"step": 4, "lo')
    text = Reader(page(folder)).text
    assert "Steps 3" in text
    assert "not finished" in text


def test_a_hundred_thousand_steps_make_a_small_page(tmp_path):
    folder = run_folder(tmp_path, metrics(100_000, evaluate=500))
    path = write_report(folder)
    assert path.stat().st_size < 400_000
    assert "Steps 100,000 100 M tokens" in Reader(path.read_text("utf-8")).text


def test_the_old_page_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    folder = run_folder(tmp_path, metrics(3))
    before = page(folder)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(OSError, match="no space"):
        write_report(folder)
    assert (folder / "report.html").read_text("utf-8") == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml", "metrics.jsonl", "report.html", "run.json", "samples.jsonl",
    ]  # fmt: skip


# Curves


def test_smoothing_keeps_a_straight_line_and_the_start():
    line = [(step, float(step)) for step in range(1, 101)]
    assert [value for _, value in smooth(line, 11)[:95]] == pytest.approx([value for _, value in line[:95]])
    assert smooth([(1, 5.0), (2, math.nan), (3, 7.0)], 3)[0] == (1, 5.0)
    assert math.isnan(smooth([(1, 5.0), (2, math.nan), (3, 7.0)], 3)[1][1])


def test_thinning_loses_no_extreme_and_no_gap():
    points = [(step, 1.0) for step in range(10_000)]
    points[5_000] = (5_000, 99.0)
    points[7_000:7_100] = [(step, math.nan) for step in range(7_000, 7_100)]
    assert len(thin(points)) <= MOST_POINTS
    assert any(math.isnan(value) for _, value in thin(points))
    assert max(high for _, _, high in band(points)) == 99.0


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2.5, 5, 7.5, 10]),
        (1.9, 9.4, [2, 4, 6, 8]),
        (0, 3.2e-4, [0, 1e-4, 2e-4, 3e-4]),
        (-3, 3, [-2, 0, 2]),
        (4, 4, [4]),
    ],
)
def test_axes_have_round_numbers(low, high, ticks):
    assert nice_ticks(low, high, 4) == pytest.approx(ticks)


def test_steps_are_whole():
    assert [tick.text for tick in x_axis(Scale(low=1, high=3))] == ["1", "2", "3"]
    assert [tick.text for tick in x_axis(Scale(low=1, high=1))] == ["1"]
    assert [tick.text for tick in x_axis(Scale(low=0, high=100_000))][:3] == ["0", "20k", "40k"]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (words.number(2.41349), "2.413"),
        (words.number(0.031214), "0.03121"),
        (words.number(1234.5), "1,234"),
        (words.number(0), "0"),
        (words.number(1.5e-7), "1.5e-7"),
        (words.number(math.nan), "NaN"),
        (words.number(-math.inf), "−∞"),
        (words.round_number(0.30000000000000004), "0.3"),
        (words.round_number(2.5e-5), "2.5e-5"),
        (words.count(812), "812"),
        (words.count(12_400), "12.4 k"),
        (words.count(999_996), "1.00 M"),
        (words.count(8_030_261_248), "8.03 B"),
        (words.round_count(2_500), "2,500"),
        (words.round_count(1_500_000), "1.5M"),
        (words.duration(0.0244), "24 ms"),
        (words.duration(0.9997), "1.0 s"),
        (words.duration(8.44), "8.4 s"),
        (words.duration(59.9), "1 min 00 s"),
        (words.duration(9.96), "10 s"),
        (words.duration(192), "3 min 12 s"),
        (words.duration(7_500), "2 h 05 min"),
        (words.change(8, 2.5), "−69 %"),
        (words.change(2.0, 2.01), "+0.5 %"),
        (words.change(0, 2), ""),
        (" ".join(words.memory(3 * 2**30)), "3.00 GiB"),
        (" ".join(words.memory(512 * 2**20)), "512 MiB"),
    ],
)
def test_numbers_read_well(made, expected):
    assert made == expected
