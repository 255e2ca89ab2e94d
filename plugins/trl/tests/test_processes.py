"""Two processes take the steps of one; accelerate serves TRL's trainers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graftwork import train


def graft(folder: Path, config: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`graft train` as two processes on gloo."""
    (folder / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "graftwork", "train", "-c", str(folder / "config.yaml"), "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=250
    )


@pytest.mark.parametrize(("method", "samples"), [("TRL_SFT", 9), ("TRL_DPO", 10)])
def test_two_processes_take_the_steps_of_one(toys: Any, tmp_path: Path, llama: Path, method: str, samples: int) -> None:
    """Two processes, gone on with after three steps, which are an epoch; and one with twice the accumulation.

    The epoch has five batches: in its last step the second process has none of its own.
    """
    data = toys.data(tmp_path, method, validation=True)
    path = Path(data["train"]["datasets"][0]["dataset_path"])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:samples]))
    data["train"]["datasets"][0]["shuffle"] = True

    def config(name: str, accumulation: int, steps: int = 5) -> Any:
        training = {"output_dir": str(tmp_path / name), "gradient_accumulation_steps": accumulation}
        training |= {
            "max_steps": steps,
            "lr_scheduler_type": "constant",
            "save_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 3,
        }
        return toys.config(tmp_path, llama, method, data, training=training)

    train(config("one", 2))
    done = graft(tmp_path, config("two", 1, 3))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "two" / "checkpoints" / "step-3").iterdir()}
    assert names >= {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "checkpoint.json"}
    done = graft(tmp_path, config("two", 1), "--resume")
    assert done.returncode == 0, done.stderr
    rows = [
        [
            {name: row[name] for name in ("step", "loss", "eval_loss") if name in row}
            for row in toys.metrics(tmp_path / run)
        ]
        for run in ("one", "two")
    ]
    assert len(rows[1]) == len(rows[0]) == 8, "the first process alone writes"
    for left, right in zip(*rows, strict=True):
        assert left == pytest.approx(right, rel=1e-4)
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert (record["status"], record["processes"]) == ("finished", 2)
    assert (tmp_path / "two" / "final" / "model.safetensors").is_file()
