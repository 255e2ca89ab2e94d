"""What a person sees while a run goes on."""

from __future__ import annotations

import errno
import io
import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest

from graftwork.cli.train import summary
from graftwork.runs import progress
from graftwork.runs.progress import Progress, clock, evaluating
from graftwork.training import TrainResult

STEP = {"loss": 2.5, "learning_rate": 1e-4, "tokens_per_s": 1234.4, "step_time_s": 2.0}
RUN: Any = SimpleNamespace(record={"total_steps": 1000})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clock: set ``times.now``."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_log_gets_a_line_now_and_then(times: Any) -> None:
    stream = io.StringIO()
    show = Progress(stream)
    for step, now in ((1, 100.0), (2, 102.0), (3, 104.0), (4, 106.0)):
        times.now = now
        show(RUN, step, STEP)
    show(RUN, 4, {"eval_loss": 2.25})
    times.now = 107.0
    show(RUN, 1000, STEP)
    assert stream.getvalue().splitlines() == [
        "step 1/1,000  loss 2.5000  lr 1.00e-04  1,234 tokens/s  33:18 left",
        "step 4/1,000  loss 2.5000  lr 1.00e-04  1,234 tokens/s  33:12 left",
        "step 4/1,000  held-out loss 2.2500",
        "step 1,000/1,000  loss 2.5000  lr 1.00e-04  1,234 tokens/s  0:00 left",
    ]


def test_a_terminal_has_one_line_that_is_rewritten(times: Any) -> None:
    stream = Terminal()
    show = Progress(stream)
    show(RUN, 1, STEP)
    times.now = 101.0
    show(RUN, 2, {**STEP, "loss": 10.0})
    show(RUN, 2, {"eval_loss": 2.25})
    written = stream.getvalue()
    assert written.count("\n") == 1
    lines = written.split("\r")[1:]
    assert [line.split()[1] for line in lines] == ["1/1,000", "2/1,000", "2/1,000"]
    # Nothing of a longer line stays behind a shorter one.
    assert len(lines[2].rstrip("\n")) == len(lines[1])


def test_time_left_is_counted_from_where_this_sitting_began(times: Any) -> None:
    stream = io.StringIO()
    show = Progress(stream)
    show(RUN, 501, STEP)
    times.now = 118.0
    show(RUN, 510, STEP)
    assert stream.getvalue().splitlines()[1].endswith("16:20 left"), "490 steps of 2 s"


def test_a_speed_that_nobody_measures_is_left_out() -> None:
    stream = io.StringIO()
    Progress(stream)(RUN, 1000, {name: value for name, value in STEP.items() if name != "tokens_per_s"})
    assert stream.getvalue() == "step 1,000/1,000  loss 2.5000  lr 1.00e-04  0:00 left\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_the_summary_says_what_was_left_out(tmp_path: Any) -> None:
    metrics = {"loss": 1.5, "eval_loss": 1.25, "skipped_batches": 3}
    result = TrainResult(output_dir=tmp_path, model_path=tmp_path / "final", step=1200, metrics=metrics)
    first, *rest = summary(result)
    assert first == "1,200 steps, loss 1.5000, held-out loss 1.2500, 3 batches without a finite loss left out"
    assert rest[-1] == f"next     graft generate {tmp_path / 'final'} --prompt '...'"
    del metrics["skipped_batches"]
    assert summary(result)[0] == "1,200 steps, loss 1.5000, held-out loss 1.2500"


def test_a_run_that_was_stopped_says_the_whole_command_that_goes_on(
    graft: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It said "go on with --resume", and not of which command."""
    stopped = TrainResult(output_dir=tmp_path, model_path=None, step=2, metrics={}, interrupted_by=2)
    monkeypatch.setattr("graftwork.config.load_config", lambda path, overrides: None)
    monkeypatch.setattr("graftwork.training.train", lambda config, **options: stopped)
    with pytest.raises(SystemExit, match="130"):
        graft("train", "my run.yaml", "training.seed=3", "--resume")
    assert capfd.readouterr().out == "next     graft train -c 'my run.yaml' --resume training.seed=3\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit, match="130"):
        graft("train", "run.yaml")
    assert capfd.readouterr().out == ""


def test_a_long_evaluation_says_how_far_it_is(times: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "graftwork"):
        for second, item in enumerate(evaluating(((number, 10) for number in range(75)), 750)):
            assert item == second
            times.now += 1
    assert caplog.messages == [
        "held-out loss of 750 samples: 50 done, 1:10 left",
        "held-out loss of 750 samples: 150 done, 1:00 left",
        "held-out loss of 750 samples: 450 done, 0:30 left",
    ]
    caplog.clear()
    assert list(evaluating([("short", 1)], 1)) == ["short"]
    assert caplog.messages == []


class Closed(io.StringIO):
    """A terminal that is gone."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_terminal_that_was_closed_does_not_end_the_run() -> None:
    """The SIGHUP that comes with it asks the run to save, and a step is shown before that."""
    Progress(Closed())._write("step 1/2", lasting=True)
