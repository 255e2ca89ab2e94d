"""A run that is killed at any moment goes on to the same numbers, to the last bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from graftwork import train
from graftwork.errors import RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUMBERS = ("step", "loss", "eval_loss", "eval_tokens", "learning_rate", "grad_norm", "tokens", "supervised_tokens")


def numbers(run: Path) -> list[dict[str, Any]]:
    """What every line of the metrics says, but for times and memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in NUMBERS if name in row} for row in rows]


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().split("\n")[:-1]]


def weights(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "final").glob("*.safetensors")}


def assert_same_run(run: Path, other: Path) -> None:
    assert numbers(run) == numbers(other)
    assert samples(run) == samples(other)
    assert weights(run) == weights(other) != {}


def assert_no_leftovers(run: Path) -> None:
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


TRAINING = {
    "max_steps": 40,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
    "weight_decay": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 3,
    "save_total_limit": 3,
    "trainer_kwargs": {"sample_count": 2, "sample_max_new_tokens": 4},
}


def streamed_mixture(toys: Any, tmp_path: Path) -> dict[str, Any]:
    """Two files in the proportion 7 to 3, each through a shuffle buffer, packed."""
    datasets = [
        {"dataset_name": "text", "dataset_path": str(toys.text(tmp_path / f"{number}.jsonl", 9 + number, seed=number))}
        | {"mixture_proportion": share, "shuffle": True, "shuffle_buffer_size": 4}
        for number, share in ((1, 0.7), (2, 0.3))
    ]
    validation = [{"dataset_name": "text", "dataset_path": str(toys.text(tmp_path / "held out.jsonl", 3, seed=9))}]
    return {
        "train": {"datasets": datasets, "stream": True, "pack": True, "max_length": 24},
        "validation": {"datasets": validation, "max_length": 24},
    }


def shuffled_chat(toys: Any, tmp_path: Path) -> dict[str, Any]:
    """Conversations in memory, shuffled, packed whole."""
    train_split = toys.split(toys.chat(tmp_path / "train.jsonl"), pack=True, max_length=64)
    train_split["datasets"][0]["shuffle"] = True
    return {"train": train_split, "validation": toys.split(toys.chat(tmp_path / "held out.jsonl", 3, seed=1))}


def save_config(path: Path, config: Any) -> Path:
    path.write_text(config.to_yaml())
    return path


VARIANTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "streamed mixture": (streamed_mixture, {}, {}),
    "shuffled chat": (shuffled_chat, {"load_best_model_at_end": True}, {}),
    "adapter": (
        shuffled_chat,
        {"use_peft": True},
        {"peft": {"lora_r": 2, "lora_dropout": 0.1, "lora_modules_to_save": ["embed_tokens"]}},
    ),
    "half precision, partly frozen": (
        shuffled_chat,
        {"mixed_precision_dtype": "bf16", "save_epoch": True},
        {"model": {"freeze_layers": ["model.embed_tokens", "model.layers.0"]}},
    ),
}


def moments(counts: dict[str, int], kills: int, steps: int, chosen: random.Random) -> Iterator[dict[str, Any]]:
    """Random moments of different kinds, each so early that so many sittings do not end the run."""
    step, preparing = counts["training"] // steps, counts["anywhere"] - counts["training"]
    for number in range(kills):
        match number % 5:
            case 0:
                yield {"place": "training", "call": chosen.randint(7 * step // 2, 5 * step)}
            case 1:
                yield {"place": "saving", "visit": 2, "call": chosen.randint(1, counts["saving"])}
            case 2:
                yield {
                    "place": "evaluating",
                    "visit": chosen.randint(1, 2),
                    "call": chosen.randint(1, counts["evaluating"]),
                }
            case 3:
                yield {"place": "training", "call": chosen.randint(1, 5 * step)}
            case _:
                yield {"place": "anywhere", "call": chosen.randint(1, min(preparing, 10 * step))}


@pytest.mark.parametrize(("variant", "kills"), [(name, 20 if name == "streamed mixture" else 4) for name in VARIANTS])
def test_killed_at_random_moments(toys: Any, tmp_path: Path, graft: Any, variant: str, kills: int) -> None:
    make_data, training, sections = VARIANTS[variant]
    half = variant.startswith("half")
    model = toys.save(
        tmp_path / "toy", dtype=torch.bfloat16 if half else torch.float32, attention_dropout=0.1
    )  # Llama's one dropout
    training = {**TRAINING, **training, "max_steps": 60 if kills > 9 else 20}
    config = toys.config(tmp_path, model, make_data(toys, tmp_path), training=training, **sections)
    path = str(save_config(tmp_path / "config.yaml", config))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    counts_path = tmp_path / "counts.json"
    assert graft("train", "-c", path, f"training.output_dir={straight}", counts=str(counts_path)) == 0, graft.said
    counts = json.loads(counts_path.read_text())

    went_on_from = set()
    for number, moment in enumerate(moments(counts, kills, config.training.max_steps, random.Random(variant))):
        arguments = ["train", "-c", path, f"training.output_dir={killed}", *(["--resume"] if number else [])]
        assert graft(*arguments, moment=moment) == -9, f"{moment}: {graft.said}"
        record = killed / "run.json"
        went_on_from.add(json.loads(record.read_text()).get("resumed_from") if record.exists() else None)
    assert graft("train", "-c", path, f"training.output_dir={killed}", "--resume") == 0, graft.said
    assert len(went_on_from - {None}) >= min(3, kills // 2), "the kills came too early to show anything"
    assert_same_run(killed, straight)
    assert_no_leftovers(killed)
    checkpoints = [path.name for path in (killed / "checkpoints").iterdir()]
    assert sorted(checkpoints) == sorted(path.name for path in (straight / "checkpoints").iterdir())
    assert len(checkpoints) in (3, 4)
    record = json.loads((killed / "run.json").read_text())
    expected = json.loads((straight / "run.json").read_text())
    assert record["status"] == "finished"
    assert {name: record["result"][name] for name in ("step", "loss", "eval_loss", "total_tokens")} == {
        name: expected["result"][name] for name in ("step", "loss", "eval_loss", "total_tokens")
    }


def test_a_real_process_killed_and_resumed(toys: Any, tmp_path: Path, llama: Path) -> None:
    """The command itself, in an interpreter of its own: killed after its second evaluation, then gone on with."""
    data = shuffled_chat(toys, tmp_path)
    training = {**TRAINING, "eval_steps": 2, "max_steps": 5, "save_steps": 1, "save_total_limit": None}
    path = save_config(tmp_path / "config.yaml", toys.config(tmp_path, llama, data, training=training))
    command = [
        sys.executable,
        "-c",
        "from graftwork.cli import main; raise SystemExit(main())",
        "train",
        "-c",
        str(path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = []
        while "step 2/5  held-out" not in (said[-1] if said else ""):
            said.append(process.stderr.readline())
            assert said[-1], f"it ended: {said}"
        process.kill()
    assert process.returncode == -9
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    straight = toys.config(tmp_path, llama, data, training={**training, "output_dir": str(tmp_path / "straight")})
    train(straight)
    assert_same_run(tmp_path / "run", tmp_path / "straight")
    # The checkpoint of step 1 or 2, or none, was there; steps are not taken twice.
    assert [row["step"] for row in numbers(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4, 5]


@pytest.fixture
def small(toys: Any, tmp_path: Path, llama: Path) -> Any:
    """A configuration of six steps, an evaluation every two, a checkpoint every two."""
    training = {**TRAINING, "max_steps": 6, "eval_steps": 2, "save_steps": 2, "save_total_limit": None}
    return toys.config(tmp_path, llama, shuffled_chat(toys, tmp_path), training=training)


def changed(config: Any, **training: Any) -> Any:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


@pytest.mark.parametrize(("signal", "place"), [("SIGINT", "training"), ("SIGTERM", "training"), ("SIGINT", "saving")])
def test_ctrl_c_saves_and_stops(tmp_path: Path, graft: Any, small: Any, signal: str, place: str) -> None:
    path = str(save_config(tmp_path / "config.yaml", small))
    moment = {"place": place, "call": 2000, "send": signal}
    assert graft("train", "-c", path, moment=moment) == 130
    assert "stopping after this step and saving; press Ctrl-C again to stop at once" in graft.said
    assert "go on with --resume" in graft.said
    assert "Traceback" not in graft.said
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "interrupted"
    last = numbers(run)[-1]["step"]
    assert (run / "checkpoints" / f"step-{last}").is_dir()
    assert not (run / "final").exists()
    assert graft("train", "-c", path, "--resume") == 0, graft.said
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    train(changed(small, output_dir=str(tmp_path / "straight")))
    assert_same_run(run, tmp_path / "straight")


def test_ctrl_c_before_the_first_step_leaves_nothing(tmp_path: Path, graft: Any, small: Any) -> None:
    path = str(save_config(tmp_path / "config.yaml", small))
    moment = {"place": "anywhere", "call": 50_000, "send": "SIGINT"}
    assert graft("train", "-c", path, moment=moment) == 130
    assert "Traceback" not in graft.said
    assert not (tmp_path / "run" / "run.json").exists()
    assert graft("train", "-c", path) == 0, graft.said


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path, small: Any) -> None:
    """Whole lines, half a line, and bytes that are no text at all; lines of the checkpoint's step stay."""
    run = tmp_path / "run"
    train(small)
    before, said = numbers(run), samples(run)
    for name in ("step-4", "step-6"):
        for path in sorted((run / "checkpoints" / name).rglob("*")):
            path.unlink()
        (run / "checkpoints" / name).rmdir()
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_bytes(
        "".join([*lines, '{"step": 7, "loss": 1.0}\n', "not json\n"]).encode() + b'\xff\n{"step": 2, "lo'
    )
    train(small, resume=True)
    assert numbers(run) == before
    assert samples(run) == said
    assert json.loads((run / "run.json").read_text())["resumed_from"] == 2


def test_texts_with_other_line_ends_survive_a_resume(tmp_path: Path, small: Any) -> None:
    """Python ends a line at U+2028 too, a JSON line does not."""
    run = tmp_path / "run"
    train(small)
    odd = {"step": 0, "stage": "odd", "prompt": "\u2028\x85\x0b", "completion": "\u2029"}
    with (run / "samples.jsonl").open("a") as file:
        file.write(json.dumps(odd, ensure_ascii=False) + "\n")
    train(changed(small, max_steps=8), resume=True)
    assert odd in samples(run)


def test_a_run_can_be_extended(tmp_path: Path, small: Any) -> None:
    """More steps, other saving: the final folder is the longer run's."""
    short = changed(small, lr_scheduler_type="constant")
    train(short)
    before = weights(tmp_path / "run")
    longer = {"max_steps": 8, "save_steps": 1, "logging_steps": 1, "save_total_limit": 2}
    train(changed(short, **longer), resume=True)
    assert weights(tmp_path / "run") != before
    train(changed(short, **longer, output_dir=str(tmp_path / "straight")))
    assert weights(tmp_path / "run") == weights(tmp_path / "straight")
    steps = [row["step"] for row in numbers(tmp_path / "run") if "loss" in row]
    assert steps == list(range(1, 9))
    assert "max_steps: 8" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, small: Any) -> None:
    run = tmp_path / "run"
    first = train(small)
    before, model = numbers(run), weights(run)
    again = train(small, resume=True)
    assert (numbers(run), weights(run)) == (before, model)
    assert (again.step, again.metrics["loss"], again.model_path) == (6, first.metrics["loss"], run / "final")


def test_a_finished_run_without_checkpoints_is_not_done_again(tmp_path: Path, small: Any) -> None:
    config = changed(small, save_steps=0)
    train(config)
    with pytest.raises(UsageError, match=r"is finished and kept no checkpoint .*its model is in .*final"):
        train(config, resume=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_resuming_where_nothing_is_begins(tmp_path: Path, small: Any) -> None:
    assert train(changed(small, try_resume_from_last_checkpoint=True)).step == 6


def test_another_configuration_is_another_run(toys: Any, tmp_path: Path, small: Any) -> None:
    run = tmp_path / "run"
    train(small)
    record, lines = (run / "run.json").read_bytes(), numbers(run)
    other = changed(small, learning_rate=0.5, seed=7, save_steps=5)
    other = other.model_copy(update={"peft": other.peft.model_copy(update={"lora_r": 3})})
    with pytest.raises(UsageError) as caught:
        train(other, resume=True)
    said = str(caught.value)
    assert "cannot be resumed, because the run would not be the same" in said
    assert "training.learning_rate was 0.01, is 0.5" in said
    assert "training.seed was 42, is 7" in said
    assert "peft.lora_r was 8, is 3" in said
    assert "save_steps" not in said
    assert "Set these back, or start a new run in another training.output_dir." in said
    assert (run / "run.json").read_bytes() == record
    assert numbers(run) == lines
    assert train(changed(small, save_steps=5), resume=True).step == 6


@pytest.mark.parametrize("split", ["train", "held out"])
def test_other_data_are_another_run(toys: Any, tmp_path: Path, small: Any, split: str) -> None:
    train(small)
    toys.chat(tmp_path / f"{split}.jsonl", 13)
    name = "train" if split == "train" else "validation"
    with pytest.raises(UsageError, match=rf"data\.{name}: the file .*{split}\.jsonl has changed"):
        train(small, resume=True)


def test_a_file_that_came_or_went_is_seen(toys: Any, tmp_path: Path, llama: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    toys.chat(folder / "a.jsonl")
    config = toys.config(tmp_path, llama, {"train": toys.split(folder)}, training={"save_steps": 2})
    train(config)
    toys.chat(folder / "b.jsonl")
    with pytest.raises(UsageError, match=r"data\.train: the file .*b\.jsonl is new"):
        train(config, resume=True)
    (folder / "a.jsonl").unlink()
    with pytest.raises(UsageError, match=r"data\.train: the file .*a\.jsonl is not read any more"):
        train(config, resume=True)


def test_an_older_checkpoint_of_the_same_run(tmp_path: Path, small: Any) -> None:
    """It is gone on with in another folder; in the same one the later ones would be another run's."""
    train(small)
    asked = str(tmp_path / "run" / "checkpoints" / "step-2")
    with pytest.raises(UsageError, match=r"step-2 is not the last checkpoint of this run; move step-4, step-6 out of"):
        train(changed(small, resume_from_checkpoint=asked))
    train(changed(small, resume_from_checkpoint=asked, output_dir=str(tmp_path / "other")))
    assert weights(tmp_path / "other") == weights(tmp_path / "run")
    assert [row["step"] for row in numbers(tmp_path / "other") if "loss" in row] == [3, 4, 5, 6]


@pytest.mark.parametrize("damage", ["trainer_state.json", "optimizer.pt"])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path, small: Any, damage: str) -> None:
    train(small)
    broken = tmp_path / "run" / "checkpoints" / "step-6"
    (broken / damage).write_bytes((broken / damage).read_bytes()[:50])
    with pytest.raises(RunError, match=r"step-6 is not a checkpoint that can be resumed: .*; delete or move it, and"):
        train(small, resume=True)


def test_two_processes_do_not_share_a_run(tmp_path: Path, graft: Any, small: Any) -> None:
    """The second is told so while the first one is at work."""
    path = str(save_config(tmp_path / "config.yaml", small))
    codes: list[int] = []

    def second(run: Any, step: int, metrics: Any) -> None:
        if step == 1:
            codes.append(graft("train", "-c", path, "--resume"))

    train(small, listeners=[second])
    assert codes == [1]
    assert "another process is writing to this run; wait for it, or stop it first" in graft.said
    assert graft("train", "-c", path, "--resume") == 0, "the lock goes with its process"


def test_leftovers_of_a_killed_process_go_at_the_next_start(tmp_path: Path, small: Any) -> None:
    train(small)
    run = tmp_path / "run"
    for name in (".final.1.tmp", "checkpoints/.step-8.1.tmp", "checkpoints/.step-2.old"):
        (run / name).mkdir()
        (run / name / "half").write_text("x")
    (run / ".run.json.1.tmp").write_text("{")
    train(small, resume=True)
    assert_no_leftovers(run)
