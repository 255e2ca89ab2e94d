"""Two processes take the steps of one: DDP and FSDP2 on gloo, against the plain loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

if TYPE_CHECKING:
    from collections.abc import Iterator

RANKS = Path(__file__).with_name("ranks.py")
NUMBERS = ("step", "loss", "eval_loss", "eval_tokens", "learning_rate", "grad_norm", "tokens", "supervised_tokens")
TOLERANCE = 1e-5
"""Relative: sums are taken in another order."""


class Ranks:
    """`graft` as one or more processes; see ``ranks.py``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(RANKS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, config: Any, ranks: int = 1, *arguments: str) -> list[int]:
        """The exit codes, rank by rank."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        path = self.folder / "config.yaml"
        path.write_text(config.to_yaml())
        arguments = ("train", "-c", str(path), *arguments)
        request = {"ranks": ranks, "folder": str(self.folder), "arguments": arguments}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())["codes"]
        return codes

    def said(self, rank: int = 0) -> str:
        return (self.folder / f"output-{rank}.txt").read_text()

    def parameters(self, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"parameters-{rank}.json").read_text())
        return found


@pytest.fixture(scope="module")
def graft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    assert ranks.process.stdin is not None
    assert ranks.process.stdout is not None
    ranks.process.stdin.close()
    ranks.process.wait(timeout=60)
    ranks.process.stdout.close()


def numbers(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in NUMBERS if name in row} for row in rows]


def assert_same(run: Path, other: Path) -> None:
    """The same steps: losses, norms, evaluations, and the weights that they lead to."""
    left, right = numbers(run), numbers(other)
    assert len(left) == len(right) > 0
    for one, two in zip(left, right, strict=True):
        assert one == pytest.approx(two, rel=TOLERANCE, abs=1e-7)
    weights, others = ({file.name: load_file(file) for file in (folder / "final").glob("*.safetensors")}
                       for folder in (run, other))  # fmt: skip
    assert weights.keys() == others.keys() != set()
    for name, tensors in weights.items():
        assert tensors.keys() == others[name].keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, others[name][key], rtol=1e-3, atol=2e-5, msg=key)


TRAINING = {
    "max_steps": 5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "weight_decay": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 0,
    "trainer_kwargs": {"sample_count": 1, "sample_max_new_tokens": 4},
}
FSDP = {"enable_fsdp": True}
ADAPTER = {"lora_r": 4, "lora_target_modules": ["q_proj", "down_proj"]}


def on_two(toys: Any, tmp_path: Path, toy: Path, data: dict[str, Any], **sections: Any) -> tuple[Any, Any]:
    """A configuration for one process, and the one of the same steps for two."""
    training = {**TRAINING, **sections.pop("training", {})}
    fsdp = sections.pop("fsdp", {})
    halves = training["gradient_accumulation_steps"] // 2
    one = toys.config(tmp_path, toy, data, training={**training, "output_dir": str(tmp_path / "one")}, **sections)
    two = {**training, "output_dir": str(tmp_path / "two"), "gradient_accumulation_steps": halves}
    return one, toys.config(tmp_path, toy, data, training=two, fsdp=fsdp, **sections)


CASES: dict[str, dict[str, Any]] = {
    "all weights": {},
    "adapter": {"training": {"use_peft": True}, "peft": ADAPTER},
    "adapter on the head": {
        "training": {"use_peft": True},
        "peft": {**ADAPTER, "lora_target_modules": ["q_proj", "lm_head"]},
    },
    "accumulation": {"training": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}},
    "checkpointed": {"training": {"enable_gradient_checkpointing": True}},
    "padded": {"training": {"trainer_kwargs": {"layout": "padded", "sample_count": 0}}},
    "bfloat16 products": {"training": {"mixed_precision_dtype": "bf16", "max_steps": 2}},
    "another optimizer": {"training": {"optimizer": "sgd", "sgd_momentum": 0.9}},
}


@pytest.mark.parametrize("fsdp", [{}, FSDP], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case, fsdp, toys, llama, chat, tmp_path, graft) -> None:
    one, two = on_two(toys, tmp_path, llama, chat, **CASES[case], fsdp=fsdp)
    assert graft(one) == [0], graft.said()
    assert graft(two, 2) == [0, 0], graft.said() + graft.said(1)
    assert_same(tmp_path / "one", tmp_path / "two")
