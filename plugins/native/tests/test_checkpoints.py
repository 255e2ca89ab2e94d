"""What is in a checkpoint, how damage to any file of it is found, and which ones are kept."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from graftwork import train
from graftwork.errors import UsageError
from graftwork.files import complete_folder
from graftwork.runs.checkpoints import damage, read_seal
from graftwork_native import trainer as trainer_module
from graftwork_native.checkpoint import generators, plain_generators, restore_generators, restore_plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def finished(toys: Any, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of six steps with a checkpoint every two, for tests to copy, and its configuration."""
    torch.set_num_threads(1)  # as one_thread does for each test, but later: other threads, other last bits
    folder = tmp_path_factory.mktemp("finished")
    data = {"train": toys.split(toys.chat(folder / "train.jsonl"))}
    data["validation"] = toys.split(toys.chat(folder / "held out.jsonl", 3, seed=1))
    training = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    config = toys.config(folder, llama, data, training=training)
    train(config)
    return folder / "run", config


@pytest.fixture
def run(toys: Any, tmp_path: Path, finished: tuple[Path, Any]) -> tuple[Path, Any]:
    """A copy of the finished run, and the configuration that goes on with it."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run", toys.changed(finished[1], output_dir=str(tmp_path / "run"))


FILES = ("model.safetensors", "config.json", "tokenizer.json", "optimizer.pt", "trainer_state.json", "checkpoint.json")


def test_a_checkpoint_is_sealed(run: tuple[Path, Any]) -> None:
    folder = run[0] / "checkpoints" / "step-4"
    assert set(FILES) < {path.name for path in folder.iterdir()}
    sealed = read_seal(folder)
    files = {path.name for path in folder.iterdir()} - {"checkpoint.json"}
    assert set(sealed["files"]) == files
    for name, listed in sealed["files"].items():
        content = (folder / name).read_bytes()
        assert listed == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert sealed["step"] == 4
    assert sealed["config"]["training"]["learning_rate"] == run[1].training.learning_rate
    assert sealed["data"] == json.loads((run[0] / "run.json").read_text())["data"]
    assert torch.__version__.startswith(sealed["versions"]["torch"].partition("+")[0])
    rows = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    assert sealed["evaluation"]["eval_loss"] == next(
        row["eval_loss"] for row in rows if row["step"] == 4 and "eval_loss" in row
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\x00")


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [flip, truncate, grow, delete])
def test_any_damage_to_any_file_is_found(run: tuple[Path, Any], name: str, harm: Callable[[Path], None]) -> None:
    folder = run[0] / "checkpoints" / "step-6"
    assert damage(folder) is None
    harm(folder / name)
    said = damage(folder)
    assert said is not None
    assert said.startswith(name)
    if name != "checkpoint.json":
        expected = {flip: "other bytes than were written", delete: "is missing"}.get(harm, " bytes, not ")
        assert expected in said
        assert (damage(folder, contents=False) is None) == (harm is flip), "a quick look sees sizes only"


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_one_is_skipped(
    toys: Any, tmp_path: Path, run: tuple[Path, Any], finished: tuple[Path, Any], name: str, caplog: Any
) -> None:
    folder, config = run
    flip(folder / "checkpoints" / "step-6" / name)
    assert train(config, resume=True).step == 6
    assert f"step-6 is damaged: {name}" in caplog.text
    assert "The run goes on from step-4" in caplog.text
    assert "step-6 is kept as damaged-step-6" in caplog.text
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["damaged-step-6", "step-2", "step-4", "step-6"]
    assert json.loads((folder / "run.json").read_text())["resumed_from"] == 4
    assert toys.numbers(folder) == toys.numbers(finished[0])
    assert toys.weights(folder) == toys.weights(finished[0])


def test_every_generator_goes_on_where_it_was() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(1))]

    draw()
    model = torch.nn.Linear(1, 1)
    plain, tensors = json.loads(json.dumps(plain_generators())), generators(model)
    first = draw()
    draw()
    restore_plain(plain)
    restore_generators(tensors, model)
    assert draw() == first


def test_a_process_keeps_the_states_of_its_own_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask for another's makes a context on it; a checkpoint of more GPUs than are here can be gone on from."""
    states = {1: torch.tensor([1], dtype=torch.uint8), 0: torch.tensor([0], dtype=torch.uint8)}
    asked: list[int] = []

    def get(gpu: int) -> torch.Tensor:
        asked.append(gpu)
        return states[gpu]

    def no(*_: Any) -> None:
        raise AssertionError("every GPU of the machine was asked")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", get)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", no)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", no)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, gpu: states.update({gpu: state}))
    model = torch.nn.Linear(1, 1)
    saved = generators(model)
    assert asked == [1]
    states[1] = torch.tensor([9], dtype=torch.uint8)
    restore_generators({**saved, "cuda": [*saved["cuda"], torch.tensor([7], dtype=torch.uint8)]}, model)
    assert {gpu: int(state) for gpu, state in states.items()} == {0: 0, 1: 1}


# Which are kept


def evaluations_are(monkeypatch: pytest.MonkeyPatch, *values: float, name: str = "eval_loss") -> None:
    numbers = iter(values)
    monkeypatch.setattr(
        trainer_module, "evaluate", lambda *_: {"eval_loss": 1.0, name: next(numbers), "eval_tokens": 1}
    )


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


EVERY = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"keep_last": 2}, ["step-3", "step-5", "step-6"]),
        ({"keep_last": 2, "eval_strategy": "no"}, ["step-5", "step-6"]),
        ({"keep_last": 2, "keep_best": 2}, ["step-2", "step-3", "step-5", "step-6"]),
        ({"keep_best": 1}, ["step-3", "step-6"]),
        ({"keep_best": 3, "save_steps": 100}, ["step-2", "step-3", "step-5", "step-6"]),
        ({"keep_last": 1, "load_best_model_at_end": True}, ["step-3", "step-6"]),
        ({"keep_best": 2, "greater_is_better": True, "keep_last": 1}, ["step-1", "step-4", "step-6"]),
    ],
)
def test_the_best_are_kept_beside_the_newest(
    toys: Any, tmp_path: Path, llama: Path, chat: Any, monkeypatch: Any, training: Any, expected: list[str]
) -> None:
    evaluations_are(monkeypatch, *([9.0, 8.0] if "eval_strategy" in training else [9.0, 5.0, 2.0, 1.0, 4.0, 3.0, 4.0]))
    train(toys.config(tmp_path, llama, chat, training={**EVERY, **training}))
    assert kept(tmp_path / "run") == expected
    if training.get("keep_best"):
        best = expected[1] if expected[0] == "step-2" else expected[0]
        evaluation = read_seal(tmp_path / "run" / "checkpoints" / best)["evaluation"]
        assert evaluation["eval_loss"] == [5.0, 2.0, 1.0, 4.0][int(best[-1]) - 1]


@pytest.mark.parametrize("name", ["eval_rewards/margins", "rewards/margins"])
def test_more_of_another_metric_is_better(
    toys: Any, tmp_path: Path, llama: Path, chat: Any, monkeypatch: Any, name: str
) -> None:
    values = (0.0, *EVERY_MARGIN)  # one row is tried before the run begins
    evaluations_are(monkeypatch, *values, name="eval_rewards/margins")
    training = {**EVERY, "keep_last": 1, "load_best_model_at_end": True, "metric_for_best_model": name}
    train(toys.config(tmp_path, llama, chat, training=training))
    assert kept(tmp_path / "run") == ["step-2", "step-6"]
    best = tmp_path / "run" / "checkpoints" / "step-2" / "model.safetensors"
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == best.read_bytes()


EVERY_MARGIN = (0.0, 0.1, 0.5, 0.3, float("nan"), 0.2, 0.5)


def test_the_old_one_goes_only_when_the_new_one_is_there(
    toys: Any, tmp_path: Path, llama: Path, chat: Any, monkeypatch: Any
) -> None:
    """At no moment of a run with one checkpoint is there none."""
    run = tmp_path / "run"
    seen: list[list[str]] = []

    def watched(path: Path) -> Any:
        if path.parent.name == "checkpoints":
            seen.append([found.name for found in path.parent.glob("step-*") if damage(found) is None])
        return complete_folder(path)

    monkeypatch.setattr("graftwork.runs.checkpoints.complete_folder", watched)
    train(toys.config(tmp_path, llama, chat, training={"max_steps": 4, "save_steps": 1, "keep_last": 1}))
    assert seen == [[], ["step-1"], ["step-2"], ["step-3"]]
    assert kept(run) == ["step-4"]


def test_a_damaged_best_one_is_passed_over(
    toys: Any, tmp_path: Path, llama: Path, chat: Any, monkeypatch: Any, caplog: Any
) -> None:
    evaluations_are(monkeypatch, 9.0, 5.0, 2.0, 1.0, 4.0)
    path = tmp_path / "run" / "checkpoints" / "step-3" / "model.safetensors"

    def harm(run: Any, step: int, metrics: Any) -> None:
        if step == 4 and "loss" in metrics:
            flip(path)

    training = {**EVERY, "max_steps": 4, "keep_best": 2, "load_best_model_at_end": True}
    train(toys.config(tmp_path, llama, chat, training=training), listeners=[harm])
    assert "step-3 is damaged: model.safetensors has other bytes" in caplog.text
    second = tmp_path / "run" / "checkpoints" / "step-2" / "model.safetensors"
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == second.read_bytes()


def test_keeping_the_best_needs_something_to_evaluate_on(toys: Any, tmp_path: Path, llama: Path, chat: Any) -> None:
    data, training = {"train": chat["train"]}, {"keep_best": 2}
    with pytest.raises(
        UsageError, match=r"keep_best.* needs evaluations; set training.eval_strategy to steps or epoch"
    ):
        train(toys.config(tmp_path, llama, data, training=training))
    with pytest.raises(UsageError, match=r"nothing to evaluate on: data.validation.datasets is empty"):
        train(toys.config(tmp_path, llama, data, training={**training, "eval_strategy": "steps"}))


def test_misspelt_names_of_what_is_kept_are_answered() -> None:
    from graftwork.config import RunConfig
    from graftwork.errors import ConfigError

    for wrong, right in (("keep_lasts", "keep_last"), ("keep_bests", "keep_best"), ("nonfinit_loss", "nonfinite_loss")):
        with pytest.raises(ConfigError, match=f"did you mean {right}"):
            RunConfig(model={"model_name": "x"}, training={wrong: 2})


# Longer than planned


@pytest.mark.parametrize("save", [{"save_steps": 100}, {"save_steps": 0, "save_epoch": True}])
def test_a_short_finished_run_can_be_made_longer(
    toys: Any, tmp_path: Path, llama: Path, chat: Any, save: dict[str, Any]
) -> None:
    """No checkpoint was due before the end; the one at the end is what the run goes on from."""
    config = toys.config(
        tmp_path, llama, {"train": chat["train"]}, training={"lr_scheduler_type": "constant", "max_steps": 4, **save}
    )
    train(config)
    assert kept(tmp_path / "run") == ["step-4"]
    train(toys.changed(config, max_steps=7), resume=True)
    straight = toys.changed(config, max_steps=7, output_dir=str(tmp_path / "straight"))
    train(straight)
    assert toys.weights(tmp_path / "run") == toys.weights(tmp_path / "straight")
    assert toys.numbers(tmp_path / "run") == toys.numbers(tmp_path / "straight")


def test_more_epochs_make_a_finished_run_longer(toys: Any, tmp_path: Path, llama: Path, chat: Any) -> None:
    training = {"lr_scheduler_type": "constant", "max_steps": -1, "num_train_epochs": 1}
    config = toys.config(tmp_path, llama, {"train": chat["train"]}, training=training)
    assert train(config).step == 6
    assert train(toys.changed(config, num_train_epochs=2), resume=True).step == 12
    train(toys.changed(config, num_train_epochs=2, output_dir=str(tmp_path / "straight")))
    assert toys.weights(tmp_path / "run") == toys.weights(tmp_path / "straight")


def test_a_last_checkpoint_that_does_not_fit_does_not_cost_the_model(
    toys: Any, tmp_path: Path, llama: Path, chat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftwork.errors import RunError

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"step-4 could not be written: .*No space left on device"):
        train(toys.config(tmp_path, llama, chat))
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    assert kept(tmp_path / "run") == []
