"""TensorBoard's own reader sees every step of a run once, however often it was interrupted."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import pytest

from graftwork.runs import tensorboard
from graftwork.runs.tensorboard import close_writer, open_writer, write

pytest.importorskip("tensorboard", reason="needs the package tensorboard")


def make_run(folder, *, start_step: int = 0, enabled: bool = True):
    training = SimpleNamespace(enable_tensorboard=enabled)
    return SimpleNamespace(folder=folder, start_step=start_step, config=SimpleNamespace(training=training))


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def sitting(folder, steps: range, *, start_step: int = 0, value: float = 1.0) -> None:
    """A run that is killed: nobody closes its writer, so only what is flushed counts."""
    run = make_run(folder, start_step=start_step)
    open_writer(run)
    for step in steps:
        write(run, step, {"loss": value * step, "learning_rate": 0.5})


def test_steps_and_evaluations_are_curves(tmp_path):
    run = make_run(tmp_path)
    open_writer(run)
    write(run, 0, {"eval_loss": 9.0, "eval_tokens": 10})
    write(run, 1, {"step": 1, "loss": 3.0, "grad_norm": math.nan})
    write(run, 2, {"step": 2, "loss": 2.0, "note": "text"})
    close_writer(run)
    found = curves(tmp_path)
    assert set(found) == {"eval/loss", "eval/tokens", "train/loss", "train/grad_norm"}
    assert found["train/loss"] == [(1, 3.0), (2, 2.0)]
    assert found["eval/loss"] == [(0, 9.0)]


def test_a_killed_run_has_lost_nothing(tmp_path):
    sitting(tmp_path, range(1, 6))
    assert curves(tmp_path)["train/loss"] == [(step, float(step)) for step in range(1, 6)]


@pytest.mark.parametrize("checkpoint", [0, 3])
def test_a_resumed_run_has_every_step_once(tmp_path, checkpoint):
    sitting(tmp_path, range(1, 6))
    sitting(tmp_path, range(checkpoint + 1, 9), start_step=checkpoint, value=10.0)
    expected = [(step, float(step if step <= checkpoint else 10 * step)) for step in range(1, 9)]
    assert curves(tmp_path)["train/loss"] == expected


def test_switched_off_writes_nothing(tmp_path):
    run = make_run(tmp_path, enabled=False)
    open_writer(run)
    write(run, 1, {"loss": 1.0})
    close_writer(run)
    assert list(tmp_path.iterdir()) == []


def test_without_tensorboard_there_is_one_notice_and_no_failure(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tensorboard, "_writer_class", lambda: None)
    run = make_run(tmp_path)
    with caplog.at_level(logging.INFO, "graftwork"):
        open_writer(run)
        write(run, 1, {"loss": 1.0})
        write(run, 2, {"loss": 1.0})
        close_writer(run)
    assert [record.message for record in caplog.records] == [
        "no TensorBoard curves: the package tensorboard is not installed (pip install tensorboard)"
    ]


def test_two_runs_at_once_do_not_share_a_writer(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    open_writer(one)
    open_writer(two)
    write(one, 1, {"loss": 1.0})
    write(two, 1, {"loss": 2.0})
    close_writer(one)
    write(one, 2, {"loss": 5.0})
    close_writer(two)
    assert curves(tmp_path / "one")["train/loss"] == [(1, 1.0)]
    assert curves(tmp_path / "two")["train/loss"] == [(1, 2.0)]
