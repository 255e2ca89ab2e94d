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
from graftwork.errors import UsageError
from graftwork.registry import get_registry
from graftwork.runs.checkpoints import damage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


def streamed_chat(toys: Any, tmp_path: Path) -> dict[str, Any]:
    """Conversations as they are read, through a shuffle buffer, packed whole."""
    data = shuffled_chat(toys, tmp_path)
    data["train"] |= {"stream": True}
    data["train"]["datasets"][0]["shuffle_buffer_size"] = 5
    return data


def mixed_documents(toys: Any, tmp_path: Path) -> dict[str, Any]:
    """Two files in memory in the proportion 7 to 3, shuffled, packed and cut."""
    data = streamed_mixture(toys, tmp_path)
    data["train"] |= {"stream": False}
    for dataset in data["train"]["datasets"]:
        del dataset["shuffle_buffer_size"]
    return data


def preference_pairs(toys: Any, tmp_path: Path) -> dict[str, Any]:
    """Pairs of answers, shuffled; the held-out ones in order."""

    def split(name: str, rows: int, **dataset: Any) -> dict[str, Any]:
        pairs = [
            {"prompt": f"q{number}" * (1 + number % 3), "chosen": f"yes {number % 5}", "rejected": f"no {number * 3}"}
            for number in range(rows)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        return {"datasets": [{"dataset_name": "preference_pairs_jsonl", "dataset_path": str(path), **dataset}]}

    return {"train": split("train", 12, shuffle=True), "validation": split("held out", 3)}


ADAPTER = {"peft": {"lora_r": 2, "lora_dropout": 0.1, "lora_modules_to_save": ["embed_tokens"]}}
VARIANTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "streamed mixture": (streamed_mixture, {}, {}),
    "mixture in memory, sgd": (mixed_documents, {"optimizer": "sgd", "sgd_momentum": 0.9, "keep_best": 2}, {}),
    "shuffled chat": (shuffled_chat, {"load_best_model_at_end": True}, {}),
    "streamed chat, adafactor": (streamed_chat, {"optimizer": "adafactor"}, {}),
    "adapter": (shuffled_chat, {"use_peft": True}, ADAPTER),
    "half precision, partly frozen": (
        shuffled_chat,
        {"mixed_precision_dtype": "bf16", "save_epoch": True},
        {"model": {"freeze_layers": ["model.embed_tokens", "model.layers.0"]}},
    ),
    "preference pairs": (preference_pairs, {"trainer_type": "NATIVE_DPO", "learning_rate": 1e-3}, {}),
    "preference pairs, adapter": (
        preference_pairs,
        {"trainer_type": "NATIVE_DPO", "use_peft": True, "load_best_model_at_end": True}
        | {"metric_for_best_model": "eval_rewards/margins", "save_total_limit": 2},
        ADAPTER,
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
    if training.get("trainer_type", "NATIVE") not in get_registry().trainers:
        pytest.skip("this trainer is not there yet")
    half = variant.startswith("half")
    model = toys.save(
        tmp_path / "toy", dtype=torch.bfloat16 if half else torch.float32, attention_dropout=0.1
    )  # Llama's one dropout
    training = {**TRAINING, **training, "max_steps": 60 if kills > 9 else 20}
    config = toys.config(tmp_path, model, make_data(toys, tmp_path), training=training, **sections)
    path = str(toys.save_config(tmp_path / "config.yaml", config))
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
    toys.assert_same_run(killed, straight)
    assert_no_leftovers(killed)
    checkpoints = [path.name for path in (killed / "checkpoints").iterdir()]
    assert sorted(checkpoints) == sorted(path.name for path in (straight / "checkpoints").iterdir())
    assert len(checkpoints) in (2, 3, 4, 5)
    assert all(damage(killed / "checkpoints" / name) is None for name in checkpoints)
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
    path = toys.save_config(tmp_path / "config.yaml", toys.config(tmp_path, llama, data, training=training))
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
    toys.assert_same_run(tmp_path / "run", tmp_path / "straight")
    # The checkpoint of step 1 or 2, or none, was there; steps are not taken twice.
    assert [row["step"] for row in toys.numbers(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4, 5]


def test_lines_after_the_checkpoint_are_dropped(toys: Any, tmp_path: Path, small: Any) -> None:
    """Whole lines, half a line, and bytes that are no text at all; lines of the checkpoint's step stay."""
    run = tmp_path / "run"
    train(small)
    before, said = toys.numbers(run), toys.samples(run)
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
    assert toys.numbers(run) == before
    assert toys.samples(run) == said
    assert json.loads((run / "run.json").read_text())["resumed_from"] == 2


def test_texts_with_other_line_ends_survive_a_resume(toys: Any, tmp_path: Path, small: Any) -> None:
    """Python ends a line at U+2028 too, a JSON line does not."""
    run = tmp_path / "run"
    train(small)
    odd = {"step": 0, "stage": "odd", "prompt": "\u2028\x85\x0b", "completion": "\u2029"}
    with (run / "samples.jsonl").open("a") as file:
        file.write(json.dumps(odd, ensure_ascii=False) + "\n")
    train(toys.changed(small, max_steps=8), resume=True)
    assert odd in toys.samples(run)


def test_a_run_can_be_extended(toys: Any, tmp_path: Path, small: Any) -> None:
    """More steps, other saving: the final folder is the longer run's."""
    short = toys.changed(small, lr_scheduler_type="constant")
    train(short)
    before = toys.weights(tmp_path / "run")
    longer = {"max_steps": 8, "save_steps": 1, "logging_steps": 1, "save_total_limit": 2}
    train(toys.changed(short, **longer), resume=True)
    assert toys.weights(tmp_path / "run") != before
    train(toys.changed(short, **longer, output_dir=str(tmp_path / "straight")))
    assert toys.weights(tmp_path / "run") == toys.weights(tmp_path / "straight")
    steps = [row["step"] for row in toys.numbers(tmp_path / "run") if "loss" in row]
    assert steps == list(range(1, 9))
    assert "max_steps: 8" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_finished_run_has_nothing_left_to_do(toys: Any, tmp_path: Path, small: Any) -> None:
    run = tmp_path / "run"
    first = train(small)
    before, model = toys.numbers(run), toys.weights(run)
    again = train(small, resume=True)
    assert (toys.numbers(run), toys.weights(run)) == (before, model)
    assert (again.step, again.metrics["loss"], again.model_path) == (6, first.metrics["loss"], run / "final")


def test_a_finished_run_without_checkpoints_is_not_done_again(toys: Any, tmp_path: Path, small: Any) -> None:
    config = toys.changed(small, save_steps=0)
    train(config)
    with pytest.raises(UsageError, match=r"is finished and kept no checkpoint .*its model is in .*final"):
        train(config, resume=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_resuming_where_nothing_is_begins(toys: Any, tmp_path: Path, small: Any) -> None:
    assert train(toys.changed(small, try_resume_from_last_checkpoint=True)).step == 6


def test_another_configuration_is_another_run(toys: Any, tmp_path: Path, small: Any) -> None:
    run = tmp_path / "run"
    train(small)
    record, lines = (run / "run.json").read_bytes(), toys.numbers(run)
    other = toys.changed(small, learning_rate=0.5, seed=7, save_steps=5, use_peft=False)
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
    assert toys.numbers(run) == lines
    assert train(toys.changed(small, save_steps=5), resume=True).step == 6


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


def test_an_older_checkpoint_of_the_same_run(toys: Any, tmp_path: Path, small: Any) -> None:
    """It is gone on with in another folder; in the same one the later ones would be another run's."""
    train(small)
    asked = str(tmp_path / "run" / "checkpoints" / "step-2")
    with pytest.raises(UsageError, match=r"step-2 is not the last checkpoint of this run; move step-4, step-6 out of"):
        train(toys.changed(small, resume_from_checkpoint=asked))
    train(toys.changed(small, resume_from_checkpoint=asked, output_dir=str(tmp_path / "other")))
    assert toys.weights(tmp_path / "other") == toys.weights(tmp_path / "run")
    assert [row["step"] for row in toys.numbers(tmp_path / "other") if "loss" in row] == [3, 4, 5, 6]


def test_two_processes_do_not_share_a_run(toys: Any, tmp_path: Path, graft: Any, small: Any) -> None:
    """The second is told so while the first one is at work."""
    path = str(toys.save_config(tmp_path / "config.yaml", small))
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
