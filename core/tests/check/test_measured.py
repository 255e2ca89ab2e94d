"""``memory`` of run.json, and that no trouble with it reaches the run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from graftwork import train
from graftwork.check import measured
from graftwork.config import RunConfig
from graftwork.runs.signals import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLUGIN = """
from graftwork import hookimpl
from graftwork.specs import TrainerSpec


class Still:
    def __init__(self, request):
        self.request = request

    def train(self):
        from graftwork.training import TrainResult

        run = self.request.run
        run.update(device="cpu", before_model_bytes=0)
        run.start(0)
        return TrainResult(output_dir=run.folder, model_path=None, step=1, metrics={"loss": 0.5})


@hookimpl
def graftwork_trainers():
    return [TrainerSpec(name="STILL", schemas=("text",), build=Still)]
"""


@pytest.fixture
def memory(
    install_plugin: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], dict[str, Any]]:
    """Trains, and gives ``memory`` of a run that must have ended well."""
    install_plugin(PLUGIN)
    monkeypatch.setattr("graftwork.training.check_config", lambda config: None)
    (tmp_path / "data.txt").write_text("text")
    config = RunConfig.model_validate(
        {
            "model": {"model_name": str(tmp_path / "gone")},
            "data": {"train": {"datasets": [{"dataset_name": "text", "dataset_path": str(tmp_path / "data.txt")}]}},
            "training": {"trainer_type": "STILL", "output_dir": str(tmp_path / "run"), "enable_tensorboard": False},
        }
    )

    def run() -> dict[str, Any]:
        assert train(config).step == 1
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert (record["status"], record.get("error")) == ("finished", None)
        found: dict[str, Any] = record.get("memory", {})
        return found

    return run


def test_the_peak_is_there_where_no_forecast_is(memory: Callable[[], dict[str, Any]]) -> None:
    """A trainer that forecasts nothing; the process itself is larger than the smallest peak that is forecast."""
    found = memory()
    assert found["peak_bytes"] > measured.SMALLEST
    assert found["not_forecast"].startswith("this trainer does not say")


@pytest.mark.parametrize("error", [ZeroDivisionError("nothing"), MemoryError("none left"), Stopped(15)])
def test_a_forecast_that_fails_is_said(
    error: BaseException, memory: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("graftwork.check.measured.memory_of", fail)
    reason = f"{type(error).__name__}: {error}"
    assert memory() == {"not_measured": reason}
    assert f"the memory of the run is not recorded: {reason}" in caplog.text


def test_a_record_that_cannot_be_written_is_said(
    memory: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from graftwork.runs.run import Run

    update = Run.update

    def full(self: Run, **facts: Any) -> None:
        if "memory" in facts:
            raise OSError(28, "No space left on device")
        update(self, **facts)

    monkeypatch.setattr(Run, "update", full)
    assert memory() == {}
    assert "the memory of the run is not written to run.json: OSError" in caplog.text
