"""``train``: everything around a method, with a trainer of a few lines in the place of one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from graftwork import train
from graftwork.config import RunConfig
from graftwork.errors import DataError, RunError, UsageError
from graftwork.registry import get_registry
from graftwork.training import FREE_TO_CHANGE

PLUGIN = """
from pathlib import Path

from graftwork import hookimpl
from graftwork.specs import TrainerSpec

seen = []
behaviour = {"steps": 3}


def _params():
    from pydantic import BaseModel, ConfigDict

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid")
        colour: str = "red"

    return Params


class Counting:
    def __init__(self, request):
        self.request = request

    def train(self):
        import random

        from graftwork.training import TrainResult

        run = self.request.run
        seen.append((self.request.params.colour, self.request.resume_from, random.random()))
        if behaviour.get("fail") == "preparing":
            raise behaviour["error"]
        start = int(self.request.resume_from.name[5:]) if self.request.resume_from else 0
        run.start(start)
        for step in range(start + 1, behaviour["steps"] + 1):
            run.log(step, {"loss": 1.0 / step})
            (run.folder / "checkpoints" / f"step-{step}").mkdir()
            if behaviour.get("fail") == step:
                raise behaviour["error"]
        return TrainResult(output_dir=run.folder, model_path=None, step=behaviour["steps"], metrics={"loss": 0.5})


@hookimpl
def graftwork_trainers():
    return [TrainerSpec(name="COUNTING", schemas=("text",), build=Counting, params=_params)]


@hookimpl
def graftwork_run_started(run):
    seen.append("started")


@hookimpl
def graftwork_step_finished(run, step, metrics):
    seen.append((step, metrics["loss"]))


@hookimpl
def graftwork_run_finished(run, error):
    seen.append(("finished", error and str(error)))
"""


@pytest.fixture
def toy(install_plugin: Any) -> Any:
    """The plugin's module: ``seen`` is what happened, ``behaviour`` what will."""
    import sys

    install_plugin(PLUGIN)
    assert "COUNTING" in get_registry().trainers
    return sys.modules["toy_plugin"]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "model").mkdir()
    (tmp_path / "data.txt").write_text("text")
    return RunConfig.model_validate(
        {
            "model": {"model_name": str(tmp_path / "model")},
            "data": {"train": {"datasets": [{"dataset_name": "text", "dataset_path": str(tmp_path / "data.txt")}]}},
            "training": {
                "trainer_type": "COUNTING",
                "trainer_kwargs": {"colour": "green"},
                "output_dir": str(tmp_path / "run"),
                "enable_tensorboard": False,
                "seed": 5,
                "optimizer": "adamw",
            },
        }
    )


@pytest.fixture(autouse=True)
def _no_optimizer_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizers come with the native plugin, which is not installed beside the toy."""
    monkeypatch.setattr("graftwork.training.check_config", lambda config: None)


def changed(config: RunConfig, **training: Any) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def record_of(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(config.training.output_dir) / "run.json").read_text())
    return found


def test_a_run_from_beginning_to_end(toy: Any, config: RunConfig, tmp_path: Path) -> None:
    heard: list[int] = []
    result = train(config, listeners=[lambda run, step, metrics: heard.append(step)])
    assert (result.step, result.output_dir, result.interrupted) == (3, tmp_path / "run", False)
    drawn = random.Random(5).random()  # the trainer finds Python's generator seeded
    assert toy.seen == [("green", None, drawn), "started", (1, 1.0), (2, 0.5), (3, 1 / 3), ("finished", None)]
    assert heard == [1, 2, 3]
    record = record_of(config)
    assert record["status"] == "finished"
    assert record["result"] == {"step": 3, "loss": 0.5}
    assert (record["seed"], record["trainer"], record["model"]) == (5, "COUNTING", str(tmp_path / "model"))
    assert list(record["data"]["train"]) == [str(tmp_path / "data.txt")]
    assert record["plugins"]["graftwork-toy:toy"] == "1.0"
    assert record["started"] <= record["finished"]


def test_options_that_the_trainer_does_not_know(toy: Any, config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="color"):
        train(changed(config, trainer_kwargs={"color": "red"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [DataError("rows.jsonl:3: bad"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_failed_preparation_leaves_nothing(toy: Any, config: RunConfig, tmp_path: Path, error: Any) -> None:
    toy.behaviour |= {"fail": "preparing", "error": error}
    with pytest.raises(type(error)):
        train(config)
    assert not (tmp_path / "run").exists()
    toy.behaviour.pop("fail")
    assert train(config).step == 3


@pytest.mark.parametrize(
    ("error", "status"), [(RunError("no room"), "failed"), (KeyboardInterrupt("no room"), "interrupted")]
)
def test_a_run_that_ends_early_says_why_and_goes_on(toy: Any, config: RunConfig, error: Any, status: str) -> None:
    toy.behaviour |= {"fail": 2, "error": error}
    with pytest.raises(type(error)):
        train(config)
    assert toy.seen[-1] == ("finished", "no room")
    assert (record_of(config)["status"], record_of(config)["error"]) == (status, "no room")
    toy.behaviour.pop("fail")
    train(config, resume=True)
    assert toy.seen[-3:] == ["started", (3, 1 / 3), ("finished", None)]
    assert (record_of(config)["status"], record_of(config)["error"]) == ("finished", None)
    lines = (Path(config.training.output_dir) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_full_disk_does_not_hide_why_a_run_failed(
    toy: Any, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftwork.runs import run

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    def fail_later(*args: Any) -> None:
        monkeypatch.setattr(run, "write_text", full)
        raise ValueError("the real reason")

    with pytest.raises(ValueError, match="the real reason"):
        train(config, listeners=[fail_later])


def test_resuming_from_a_place_that_is_none(toy: Any, config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"resume_from_checkpoint: .*nowhere is not a folder; checkpoints here: none"):
        train(changed(config, resume_from_checkpoint=str(tmp_path / "nowhere")))


def test_what_may_change_is_known_to_the_configuration() -> None:
    """A field that was renamed would silently become one that forbids a resume."""
    for section, fields in FREE_TO_CHANGE.items():
        model: Any = RunConfig.model_fields[section].annotation
        assert fields is None or fields <= set(model.model_fields)


def test_a_field_that_changes_the_numbers_is_never_free(toy: Any, config: RunConfig) -> None:
    train(config)
    for name, value in {
        "learning_rate": 0.9, "seed": 1, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2,
        "optimizer": "sgd", "weight_decay": 0.3, "max_grad_norm": 0.1, "mixed_precision_dtype": "bf16",
        "lr_scheduler_type": "cosine", "warmup_steps": 4, "use_peft": True, "eval_steps": 7,
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=rf"training\.{name} was .*, is {value!r}"):
            train(changed(config, **{name: value}), resume=True)
