"""SIGTERM and Ctrl-C at every stage of a run: what is saved, what is said, which exit code; then the run goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from graftwork import train

if TYPE_CHECKING:
    from pathlib import Path

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def assert_goes_on(graft: Any, toys: Any, tmp_path: Path, config: Any) -> None:
    """Resumed, the run is the one that nobody interrupted."""
    path = str(tmp_path / "config.yaml")
    assert graft("train", "-c", path, "--resume") == 0, graft.said
    assert record_of(tmp_path / "run")["status"] == "finished"
    train(toys.changed(config, output_dir=str(tmp_path / "straight")))
    toys.assert_same_run(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("signal", CODES)
@pytest.mark.parametrize("place", ["training", "saving"])
def test_a_signal_saves_and_stops(toys: Any, tmp_path: Path, graft: Any, small: Any, signal: str, place: str) -> None:
    path = str(toys.save_config(tmp_path / "config.yaml", small))
    assert graft("train", "-c", path, moment={"place": place, "call": 2000, "send": signal}) == CODES[signal]
    again = "press Ctrl-C again" if signal == "SIGINT" else f"a second {signal} is"
    assert f"stopping after this step and saving; {again} to stop at once without saving" in graft.said
    assert "go on with --resume" in graft.said
    assert "Traceback" not in graft.said
    run = tmp_path / "run"
    assert record_of(run)["status"] == "interrupted"
    last = toys.numbers(run)[-1]["step"]
    assert (run / "checkpoints" / f"step-{last}").is_dir()
    assert not (run / "final").exists()
    assert_goes_on(graft, toys, tmp_path, small)


@pytest.mark.parametrize("visit", [1, 2, 4])
def test_a_signal_while_evaluating_does_not_wait_for_the_end(
    toys: Any, tmp_path: Path, graft: Any, small: Any, visit: int
) -> None:
    """The evaluation is broken off and made at the resume: before the first step, between steps, after the last."""
    config = toys.changed(small, per_device_eval_batch_size=1, load_best_model_at_end=True)
    path = str(toys.save_config(tmp_path / "config.yaml", config))
    assert (
        graft("train", "-c", path, moment={"place": "evaluating", "visit": visit, "call": 5, "send": "SIGTERM"}) == 143
    )
    step = [0, 2, 4, 6][visit - 1]
    run = tmp_path / "run"
    if step:
        assert [row["step"] for row in toys.numbers(run) if "eval_loss" in row] == [0, 2, 4][: visit - 1]
        assert f"stopped at step {step}; saved" in graft.said
    else:
        assert "stopped before the first step; begin again with --resume" in graft.said
        assert list((run / "checkpoints").iterdir()) == []
    # Killed in the middle of the evaluation that is made later, too
    assert graft("train", "-c", path, "--resume", moment={"place": "evaluating", "call": 50}) == -9
    assert_goes_on(graft, toys, tmp_path, config)


def test_a_second_signal_stops_at_once(toys: Any, tmp_path: Path, graft: Any, small: Any) -> None:
    path = str(toys.save_config(tmp_path / "config.yaml", small))
    moment = {"place": "saving", "visit": 2, "call": 200, "send": "SIGTERM", "times": 2}
    assert graft("train", "-c", path, moment=moment) == 143
    run = tmp_path / "run"
    assert "Interrupted." in graft.said
    assert "Traceback" not in graft.said
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"], "the half-written one is gone"
    assert record_of(run)["status"] == "interrupted"
    assert_goes_on(graft, toys, tmp_path, small)


@pytest.mark.parametrize("signal", CODES)
@pytest.mark.parametrize("call", [3_000, 12_000])
def test_a_signal_before_the_first_step_leaves_nothing(
    toys: Any, tmp_path: Path, graft: Any, small: Any, signal: str, call: int
) -> None:
    """While the data are read, or the model is loaded and tried."""
    path = str(toys.save_config(tmp_path / "config.yaml", small))
    assert graft("train", "-c", path, moment={"place": "preparing", "call": call, "send": signal}) == CODES[signal]
    assert "Traceback" not in graft.said
    assert not (tmp_path / "run").exists()
    assert graft("train", "-c", path) == 0, graft.said


def test_a_signal_while_a_resumed_run_prepares_changes_nothing(
    toys: Any, tmp_path: Path, graft: Any, small: Any
) -> None:
    path = str(toys.save_config(tmp_path / "config.yaml", small))
    assert graft("train", "-c", path, moment={"place": "training", "call": 2000}) == -9
    before = toys.numbers(tmp_path / "run")
    assert graft("train", "-c", path, "--resume", moment={"place": "preparing", "call": 500, "send": "SIGTERM"}) == 143
    assert toys.numbers(tmp_path / "run") == before
    assert record_of(tmp_path / "run")["status"] == "interrupted"
    assert_goes_on(graft, toys, tmp_path, small)


def test_a_signal_while_the_final_model_is_written_lets_it_be_written(
    toys: Any, tmp_path: Path, graft: Any, small: Any
) -> None:
    path = str(toys.save_config(tmp_path / "config.yaml", small))
    assert graft("train", "-c", path, moment={"place": "ending", "call": 100, "send": "SIGTERM"}) == 0
    assert record_of(tmp_path / "run")["status"] == "finished"
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
