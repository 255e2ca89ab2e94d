"""A loss or gradient that is no number: the rows are named, the run stops or leaves the batch out, nothing is lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from graftwork import train
from graftwork.data.batch import to_row
from graftwork.data.samples import Sample
from graftwork.errors import RunError
from graftwork.runs.checkpoints import damage
from graftwork_native import nonfinite
from graftwork_native import trainer as trainer_module
from graftwork_native.objective import CrossEntropy

if TYPE_CHECKING:
    from pathlib import Path

BAD_ROWS = (5, 9)
"""Lines of the data with the one letter whose embedding is not a number."""


@pytest.fixture
def poisoned(toys: Any, tmp_path: Path) -> Path:
    """A model in which the letter Z is NaN."""
    folder = toys.save(tmp_path / "poisoned")
    model = AutoModelForCausalLM.from_pretrained(folder)
    token = toys.tokenizer()("Z").input_ids[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path, toys: Any) -> dict[str, Any]:
    """Twelve conversations in order, two of them with the letter."""
    asked = ["Z" if line in BAD_ROWS else f"q{line}" for line in range(1, 13)]
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"a{line}"}]}
        for line, question in enumerate(asked, 1)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": toys.split(path)}


FROZEN = {"model": {"freeze_layers": ["model.embed_tokens"]}}
"""The embedding is not trained, so what is saved is what was trained, and that stays finite."""


def configure(toys: Any, tmp_path: Path, poisoned: Path, data: Any, name: str = "run", **training: Any) -> Any:
    training = {"output_dir": str(tmp_path / name), "max_steps": 6, "save_steps": 1, "learning_rate": 1e-3, **training}
    return toys.config(tmp_path, poisoned, data, training=training, **FROZEN)


def test_the_run_stops_and_names_the_row(toys: Any, tmp_path: Path, poisoned: Path, data: Any) -> None:
    config = configure(toys, tmp_path, poisoned, data)
    with pytest.raises(RunError) as caught:
        train(config)
    said, file = str(caught.value), tmp_path / "train.jsonl"
    assert said.startswith("step 3: the loss is nan, the norm of its gradient nan; it comes from ")
    assert f"it comes from {file}:5. The rows of the step: {file}:5, {file}:6\n" in said
    assert "The weights were left as they were before it; the last checkpoint is " in said
    assert "step-2. Go on without such batches (--resume training.nonfinite_loss=skip), or mend those rows and" in said
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-1", "step-2"]
    assert damage(run / "checkpoints" / "step-2") is None
    assert not (run / "final").exists()
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", said)


def test_the_batch_is_left_out(
    toys: Any, tmp_path: Path, poisoned: Path, data: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, optimizer and schedule as if the batch had never been: the same numbers as without those rows."""
    train(configure(toys, tmp_path, poisoned, data, nonfinite_loss="skip", max_steps=4))
    run = tmp_path / "run"
    warnings = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(warnings) == 2
    assert "step 3: the loss is nan" in warnings[0]
    assert "train.jsonl:5. The rows" in warnings[0]
    assert warnings[1].endswith("The batch is left out (2 so far)")
    rows = toys.numbers(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("skipped_batches", 0) for row in rows] == [0, 0, 1, 2]
    assert json.loads((run / "run.json").read_text())["result"]["skipped_batches"] == 2
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    good = [line for number, line in enumerate(lines, 1) if number not in (5, 6, 9, 10)]
    (tmp_path / "good.jsonl").write_text("".join(good))
    clean = {"train": toys.split(tmp_path / "good.jsonl")}
    train(configure(toys, tmp_path, poisoned, clean, "clean", max_steps=4))
    assert toys.weights(run) == toys.weights(tmp_path / "clean")
    assert [row["loss"] for row in rows] == [row["loss"] for row in toys.numbers(tmp_path / "clean")]


def test_pairs_behind_a_left_out_batch_have_a_reference(toys: Any, tmp_path: Path, poisoned: Path) -> None:
    """It is computed before the first step, for the rows that the steps would take if none were left out."""
    asked = ["Z" if line == 3 else f"q{line}" for line in range(1, 9)]
    rows = [{"prompt": question, "chosen": f"a{question}", "rejected": "b"} for question in asked]
    runs = {"skipping": rows, "clean": rows[:2] + rows[4:]}
    for name, pairs in runs.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
        data = {"train": {"datasets": [{"dataset_name": "preference_pairs_jsonl", "dataset_path": str(path)}]}}
        options = {"trainer_type": "NATIVE_DPO", "trainer_kwargs": {"sample_count": 0}, "max_steps": 3}
        train(configure(toys, tmp_path, poisoned, data, name, nonfinite_loss="skip", **options))
    assert toys.numbers(tmp_path / "skipping")[-1]["skipped_batches"] == 1
    assert toys.weights(tmp_path / "skipping") == toys.weights(tmp_path / "clean")


def test_a_stopped_run_goes_on_with_skip(toys: Any, tmp_path: Path, poisoned: Path, data: Any) -> None:
    config = configure(toys, tmp_path, poisoned, data)
    with pytest.raises(RunError, match="step 3"):
        train(config)
    train(toys.changed(config, nonfinite_loss="skip"), resume=True)
    train(configure(toys, tmp_path, poisoned, data, "straight", nonfinite_loss="skip"))
    assert toys.weights(tmp_path / "run") == toys.weights(tmp_path / "straight")
    assert toys.numbers(tmp_path / "run") == toys.numbers(tmp_path / "straight")


def test_an_epoch_that_ends_in_a_left_out_batch_is_still_an_epoch(
    toys: Any, tmp_path: Path, poisoned: Path, data: Any
) -> None:
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join([*lines[:4], lines[4], *lines[5:6]]))  # row 5 in the last batch
    config = configure(
        toys, tmp_path, poisoned, data, nonfinite_loss="skip", save_steps=0, save_epoch=True, max_steps=5
    )
    train(config)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-3", "step-5"]


def test_ten_in_a_row_are_not_the_rows(toys: Any, tmp_path: Path, poisoned: Path, data: Any) -> None:
    text = (tmp_path / "train.jsonl").read_text()
    row = text.splitlines(keepends=True)[BAD_ROWS[0] - 1]
    (tmp_path / "train.jsonl").write_text("".join(text.splitlines(keepends=True)[:2]) + row * 40)
    config = configure(toys, tmp_path, poisoned, data, nonfinite_loss="skip", max_steps=3)
    with pytest.raises(RunError, match=r"(?s)step 2: .*10 batches in a row had no finite loss or grad") as caught:
        train(config)
    assert "Mend those rows and start anew. Where it is not the rows: lower" in str(caught.value)
    assert "nonfinite_loss=skip" not in str(caught.value), "it is that already"
    assert damage(tmp_path / "run" / "checkpoints" / "step-1") is None


@pytest.mark.parametrize("nonfinite_loss", ["stop", "skip"])
def test_weights_that_a_step_broke_are_never_saved(
    toys: Any, tmp_path: Path, llama: Path, chat: Any, monkeypatch: pytest.MonkeyPatch, nonfinite_loss: str
) -> None:
    """An infinite rate leaves no finite weight; the checkpoint before it stays the last one."""
    rate = trainer_module.learning_rate
    monkeypatch.setattr(trainer_module, "learning_rate", lambda *args: float("inf") if args[1] == 2 else rate(*args))
    training = {"save_steps": 2, "max_steps": 9, "nonfinite_loss": nonfinite_loss}
    config = toys.config(tmp_path, llama, {"train": chat["train"]}, training=training)
    with pytest.raises(RunError, match=r"step 4: .*is not finite any more, so an earlier step broke the weights"):
        train(config)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    at_once = toys.changed(config, save_steps=1, output_dir=str(tmp_path / "at once"))
    with pytest.raises(RunError, match=r"after step 3 .* is not finite any more: it is not saved; the last checkpoint"):
        train(at_once)
    last = toys.changed(config, max_steps=3, save_steps=0, output_dir=str(tmp_path / "last"))
    with pytest.raises(RunError, match=r"after step 3 .* is not finite any more: it is not saved; there is no checkpo"):
        train(last)
    assert not (tmp_path / "last" / "final").exists()


def test_an_infinite_rate_is_a_mistake_in_the_configuration(toys: Any, tmp_path: Path, llama: Path, chat: Any) -> None:
    from graftwork.errors import ConfigError

    config = toys.config(tmp_path, llama, chat)
    with pytest.raises(ConfigError, match=r"learning_rate.*finite"):
        config.training.learning_rate = float("inf")


def sample(start: int, length: int, parts: tuple[int, int, int] | None = None) -> Sample:
    ids = np.arange(start, start + length, dtype=np.int32)
    trained = np.arange(length) >= parts[0] if parts else np.arange(length) % 3 > 0
    return Sample(ids, trained, f"a:{start}", parts)


@pytest.mark.parametrize(
    "samples",
    [
        [sample(0, 4), sample(10, 3), sample(20, 6)],
        [sample(0, 7, (3, 2, 2)), sample(10, 9, (2, 3, 4)), sample(20, 5, (1, 1, 3))],
    ],
    ids=["conversations", "pairs"],
)
def test_a_row_falls_apart_into_its_samples(samples: list[Sample]) -> None:
    singles = nonfinite.singles(to_row(samples))
    for each, single in zip(samples, singles, strict=True):
        alone = to_row([each])
        for name in ("input_ids", "position_ids", "label_positions", "labels"):
            assert torch.equal(getattr(single, name), getattr(alone, name))
        for name in ("segment_lengths", "wheres", "pairs", "pair_labels"):
            assert getattr(single, name) == getattr(alone, name)


def test_the_pair_is_named(toys: Any, tmp_path: Path, poisoned: Path) -> None:
    rows = [
        {"prompt": "Z" if line == 5 else f"q{line}", "chosen": f"yes {line}", "rejected": "no"} for line in range(1, 9)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": {"datasets": [{"dataset_name": "preference_pairs_jsonl", "dataset_path": str(path)}]}}
    config = configure(toys, tmp_path, poisoned, data, trainer_type="NATIVE_DPO")
    with pytest.raises(RunError, match=rf"step 3: the loss is nan, .* it comes from {path}:5\. The rows of the step"):
        train(config)


@pytest.fixture
def steep(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Places of which the loss is a number and the gradient is not: a root at zero adds nothing and is vertical."""
    places: list[str] = []
    plain = CrossEntropy.loss

    def loss(self: CrossEntropy, row: Any, scale: float) -> torch.Tensor:
        value = plain(self, row, scale)
        weight = next(weight for weight in self.forward.model.parameters() if weight.requires_grad)
        return value + (weight.sum() * 0).sqrt() if set(places) & set(row.wheres) else value

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    return places


@pytest.mark.parametrize("pack", [False, True])
def test_the_row_whose_gradient_is_no_number_is_named(
    toys: Any, tmp_path: Path, llama: Path, data: Any, steep: list[str], pack: bool
) -> None:
    file = tmp_path / "train.jsonl"
    steep.append(f"{file}:5")
    data["train"]["pack"] = pack
    config = configure(toys, tmp_path, llama, data)
    with pytest.raises(RunError, match=r"the loss is \d\S+, the norm of its gradient nan") as caught:
        train(config)
    said = str(caught.value)
    assert f"; it comes from the gradient of {file}:5. The rows of the step: " in said
    assert len(said.partition("The rows of the step: ")[2].partition("\n")[0].split(", ")) > 1


@pytest.mark.parametrize("use_peft", [False, True])
def test_the_search_leaves_no_traces(
    toys: Any, tmp_path: Path, data: Any, steep: list[str], monkeypatch: pytest.MonkeyPatch, use_peft: bool
) -> None:
    """With dropout: the same weights as a run that skips the batch without asking whose fault it is."""
    steep.append(f"{tmp_path / 'train.jsonl'}:5")
    toy = toys.save(tmp_path / "toy", attention_dropout=0.2)
    asked: list[Any] = []
    real = nonfinite.find_by_gradient

    def noted(rows: Any, objective: Any, model: Any, clear: Any) -> list[str]:
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [(weight.grad is None, id(weight.grad)) for weight in weights]
        asked.append(real(rows, objective, model, clear))
        assert [(weight.grad is None, id(weight.grad)) for weight in weights] == before
        assert not any(weight.grad.any() for weight in weights if weight.grad is not None)
        return asked[-1]

    for name, search in (("searched", noted), ("not", lambda *args: [])):
        monkeypatch.setattr(nonfinite, "find_by_gradient", search)
        training = {"output_dir": str(tmp_path / name), "nonfinite_loss": "skip", "use_peft": use_peft, "max_steps": 4}
        train(toys.config(tmp_path, toy, data, training=training))
    assert asked == [[f"{tmp_path / 'train.jsonl'}:5"]]
    assert toys.weights(tmp_path / "searched") == toys.weights(tmp_path / "not")
    assert toys.numbers(tmp_path / "searched") == toys.numbers(tmp_path / "not")


def out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def something_else() -> None:
    torch.ones(2, 3) @ torch.ones(2, 3)


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (lambda: torch.empty(2**60, dtype=torch.uint8), r"the norm of its gradient nan\. The rows of the step: "),
        (out_of_gpu_memory, r"the norm of its gradient nan\. The rows of the step: "),
        (something_else, "mat1 and mat2 shapes cannot be multiplied"),
    ],
    ids=["CPU", "GPU", "another error"],
)
def test_a_search_that_runs_out_of_memory_still_ends_in_the_message(
    toys: Any,
    tmp_path: Path,
    llama: Path,
    data: Any,
    steep: list[str],
    monkeypatch: pytest.MonkeyPatch,
    fails: Any,
    said: str,
) -> None:
    """The allocator's own error; and no other error is taken for one."""
    steep.append(f"{tmp_path / 'train.jsonl'}:5")
    search = nonfinite.find_by_gradient

    def without_memory(rows: Any, objective: Any, model: Any, clear: Any) -> list[str]:
        monkeypatch.setattr(CrossEntropy, "loss", lambda *args: fails())
        return search(rows, objective, model, clear)

    monkeypatch.setattr(nonfinite, "find_by_gradient", without_memory)
    with pytest.raises(RuntimeError if fails is something_else else RunError, match=said):
        train(configure(toys, tmp_path, llama, data))


def test_only_so_many_rows_are_listed() -> None:
    assert nonfinite.listed([str(number) for number in range(22)]).endswith("18, 19 and 2 more")
