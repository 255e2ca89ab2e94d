"""A run that is killed at any moment goes on to the same numbers, to the last bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from graftwork import train
from graftwork.errors import RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNER = Path(__file__).with_name("runner.py")
NUMBERS = ("step", "loss", "eval_loss", "eval_tokens", "learning_rate", "grad_norm", "tokens", "supervised_tokens")


class Runner:
    """`graft` in processes of its own; see ``runner.py``."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(RUNNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, *arguments: str, **request: Any) -> int:
        """The exit code; minus the signal's number where one ended it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = json.dumps({"arguments": arguments, "output": str(self.output), **request})
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline())["code"])

    @property
    def said(self) -> str:
        return self.output.read_text()


@pytest.fixture(scope="module")
def graft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("runner"))
    yield runner
    assert runner.process.stdin is not None
    assert runner.process.stdout is not None
    runner.process.stdin.close()
    runner.process.wait(timeout=60)
    runner.process.stdout.close()


def numbers(run: Path) -> list[dict[str, Any]]:
    """What every line of the metrics says, but for times and memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in NUMBERS if name in row} for row in rows]


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


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


@pytest.mark.parametrize(("variant", "kills"), [(name, 20 if name == "streamed mixture" else 4) for name in VARIANTS])
def test_killed_at_random_moments(toys: Any, tmp_path: Path, graft: Runner, variant: str, kills: int) -> None:
    make_data, training, sections = VARIANTS[variant]
    half = variant.startswith("half")
    model = toys.save(
        tmp_path / "toy", dtype=torch.bfloat16 if half else torch.float32, attention_dropout=0.1
    )  # Llama's one dropout
    training = {**TRAINING, **training, "max_steps": 2 * kills if kills > 9 else 20}
    config = toys.config(tmp_path, model, make_data(toys, tmp_path), training=training, **sections)
    path = str(save_config(tmp_path / "config.yaml", config))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    counts_path = tmp_path / "counts.json"
    assert graft("train", "-c", path, f"training.output_dir={straight}", counts=str(counts_path)) == 0, graft.said
    counts = json.loads(counts_path.read_text())

    chosen = random.Random(variant)
    went_on_from = set()
    for number in range(kills):
        place = ("evaluating", "saving", "anywhere", "anywhere")[number % 4]
        # Early enough that so many sittings do not end the run
        most = counts[place] * 6 // kills if place == "anywhere" else counts[place]
        moment = {"place": place, "call": chosen.randint(1, most), "visit": chosen.randint(1 + (kills < 9), 3)}
        arguments = ["train", "-c", path, f"training.output_dir={killed}", *(["--resume"] if number else [])]
        assert graft(*arguments, moment=moment) == -9, f"{moment}: {graft.said}"
        went_on_from.add(json.loads((killed / "run.json").read_text()).get("resumed_from"))
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
