"""``train``: everything around a method, with a trainer of a few lines in the place of one."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from graftwork import train
from graftwork.config import RunConfig
from graftwork.config.fsdp import FsdpParams
from graftwork.errors import DataError, RunError, UsageError
from graftwork.registry import get_registry
from graftwork.runs.signals import Stopped, exit_code
from graftwork.training import FREE_TO_CHANGE, differences

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

        from graftwork.runs.checkpoints import new_checkpoint
        from graftwork.training import TrainResult

        run = self.request.run
        seen.append((self.request.params.colour, self.request.resume_from, random.random()))
        if behaviour.get("fail") == "preparing":
            raise behaviour["error"]
        if behaviour.get("signal"):
            import os

            os.kill(os.getpid(), behaviour["signal"])
        start = int(self.request.resume_from.name[5:]) if self.request.resume_from else 0
        run.start(start)
        for step in range(start + 1, behaviour["steps"] + 1):
            run.log(step, {"loss": 1.0 / step})
            with new_checkpoint(run, step) as folder:
                (folder / "weights").write_text(str(step))
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


@pytest.mark.parametrize(("step", "place"), [(1, "step 0: it has no checkpoint yet"), (3, "step-2")])
def test_a_run_that_is_broken_off_says_how_to_go_on(
    toy: Any, config: RunConfig, caplog: Any, step: int, place: str
) -> None:
    def break_off(run: Any, now: int, metrics: Any) -> None:
        if now == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, listeners=[break_off])
    assert f"the run in {config.training.output_dir} was broken off; --resume goes on from {place}" in caplog.text
    assert train(config, resume=True).step == 3, "as it says"


def test_sigterm_while_preparing_leaves_nothing(toy: Any, config: RunConfig, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    toy.behaviour["signal"] = signal.SIGTERM
    with pytest.raises(Stopped) as caught:
        train(config)
    assert exit_code(caught.value) == 143
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGTERM) is before, "the handler of whoever calls is back"
    toy.behaviour.pop("signal")
    assert train(config).step == 3


def test_a_forked_worker_dies_of_sigterm_as_ever(toy: Any, config: RunConfig, tmp_path: Path) -> None:
    """The exception is the run's: a worker that its pool ends does not print a traceback."""
    children: list[int] = []

    def fork(run: Any, step: int, metrics: Any) -> None:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        children.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    assert train(config, listeners=[fork]).step == 3
    assert children == [-signal.SIGTERM] * 3


def test_a_damaged_checkpoint_is_set_aside(toy: Any, config: RunConfig, tmp_path: Path, caplog: Any) -> None:
    train(config)
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "step-3" / "weights").write_text("4")
    toy.behaviour["steps"] = 4
    train(config, resume=True)
    assert toy.seen[-4:] == ["started", (3, 1 / 3), (4, 0.25), ("finished", None)]
    assert "step-3 is damaged: weights has other bytes than were written. The run goes on from step-2" in caplog.text
    assert "step-3 is kept as damaged-step-3" in caplog.text
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "damaged-step-3",
        *(f"step-{n}" for n in (1, 2, 3, 4)),
    ]
    for name in ("step-3", "step-4"):
        (checkpoints / name / "weights").unlink()
    train(config, resume=True)
    assert {"damaged-step-3", "damaged-step-3-2", "damaged-step-4"} < {path.name for path in checkpoints.iterdir()}


def test_nothing_begins_anew_where_every_checkpoint_is_damaged(toy: Any, config: RunConfig, tmp_path: Path) -> None:
    train(config)
    checkpoints = tmp_path / "run" / "checkpoints"
    for path in checkpoints.iterdir():
        (path / "checkpoint.json").write_text("{")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(RunError, match=r"(?s)no checkpoint that is whole:.*step-3: checkpoint\.json cannot be read"):
        train(config, resume=True)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-1", "step-2", "step-3"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == lines


def test_a_list_that_differs_is_told_leaf_by_leaf() -> None:
    """Not as two Python lists, which nobody can compare."""
    one = {"dataset_name": "text", "dataset_path": "a", "split": "train", "subset": None, "dataset_kwargs": {}}
    before = {"data": {"train": {"datasets": [one]}}, "model": {"freeze_layers": ["a", "b"]}}
    now = {
        "data": {"train": {"datasets": [{**one, "dataset_path": "b"}, {**one, "shuffle": False}]}},
        "model": {"freeze_layers": ["a"]},
    }
    assert differences(before, now) == [
        "data.train.datasets.0.dataset_path was 'a', is 'b'",
        "data.train.datasets.1.dataset_name was not there, is 'text'",
        "data.train.datasets.1.dataset_path was not there, is 'a'",
        "data.train.datasets.1.split was not there, is 'train'",
        "model.freeze_layers.1 was 'b', is not there",
    ]
    assert differences({"model": {"compile": False}}, {"model": {"compile": True}}) == [
        "model.compile was False, is True"
    ]


def test_a_checkpoint_says_itself_what_it_belongs_to(toy: Any, config: RunConfig, tmp_path: Path, caplog: Any) -> None:
    """Also in another folder than the one that it was written in."""
    train(config)
    asked = tmp_path / "run" / "checkpoints" / "step-3"
    other = {"output_dir": str(tmp_path / "other"), "resume_from_checkpoint": str(asked)}
    with pytest.raises(UsageError, match=r"(?s)step-3 cannot be resumed, .*training\.learning_rate was 5e-05, is 0\.5"):
        train(changed(config, **other, learning_rate=0.5))
    assert train(changed(config, **other)).step == 3
    (tmp_path / "data.txt").write_text("other text")
    again = {**other, "output_dir": str(tmp_path / "again")}
    with pytest.raises(
        UsageError, match=r"step-3 cannot be resumed[^\n]*\n  data\.train: the file .*data\.txt has changed"
    ):
        train(changed(config, **again))
    assert not (tmp_path / "again").exists()


def test_only_what_changed_is_listed(toy: Any, config: RunConfig) -> None:
    train(config)
    other = config.model_copy(deep=True)
    other.data.train.pack = True
    other.data.train.datasets[0].dataset_kwargs = {"separator": "--"}
    with pytest.raises(UsageError) as caught:
        train(other, resume=True)
    assert str(caught.value).splitlines()[1:-1] == [
        "  data.train.datasets.0.dataset_kwargs.separator was not there, is '--'",
        "  data.train.pack was False, is True",
    ]


def test_a_checkpoint_that_is_asked_for_must_be_whole(toy: Any, config: RunConfig, tmp_path: Path) -> None:
    train(config)
    asked = tmp_path / "run" / "checkpoints" / "step-3"
    (asked / "weights").write_text("a longer text")
    other = {"output_dir": str(tmp_path / "other"), "resume_from_checkpoint": str(asked)}
    with pytest.raises(RunError, match=r"step-3 is not a checkpoint that can be resumed: weights has 13 bytes, not 1"):
        train(changed(config, **other))


def test_other_versions_are_said(toy: Any, config: RunConfig, tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("graftwork.training.installed", lambda name: "1.0" if name == "torch" else None)
    train(config)
    monkeypatch.setattr("graftwork.training.installed", lambda name: "1.1")
    train(config, resume=True)
    assert "step-3 was written with torch 1.0 (now 1.1): the numbers may differ" in caplog.text


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
    half = config.model_copy(update={"fsdp": FsdpParams(mixed_precision="bf16")})
    with pytest.raises(UsageError, match=r"fsdp\.mixed_precision was None, is 'bf16'"):
        train(half, resume=True)
