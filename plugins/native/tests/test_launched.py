"""`graft train --nproc-per-node`, torchrun and accelerate launch, as a person starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

GRAFT = [sys.executable, "-m", "graftwork"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "GLOO_SOCKET_IFNAME": "lo"}
TRAINING = {
    "max_steps": 4000,
    "logging_steps": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "save_steps": 0,
    "lr_scheduler_type": "constant",
}
LIMIT_S = 240


def save(path: Path, config: Any) -> Path:
    path.write_text(config.to_yaml())
    return path


def steps(run: Path) -> list[float]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["loss"] for line in lines if '"loss"' in line]


def wait_for_steps(process: subprocess.Popen[str], run: Path, count: int) -> None:
    end = time.monotonic() + LIMIT_S / 2
    while len(steps(run)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=ENVIRONMENT, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_sigterm_saves_once_and_torchrun_goes_on(toys, llama, chat, tmp_path) -> None:
    data = {"train": chat["train"]}
    path = save(tmp_path / "run.yaml", toys.config(tmp_path, llama, data, training=TRAINING))
    launcher = start(*GRAFT, "train", "-c", str(path), "--nproc-per-node", "2")
    wait_for_steps(launcher, tmp_path / "run", 3)
    launcher.send_signal(signal.SIGTERM)
    said, notices = launcher.communicate(timeout=LIMIT_S)
    assert launcher.returncode == 143, said + notices
    assert notices.count("; saved ") == 1
    [checkpoint] = (tmp_path / "run/checkpoints").iterdir()
    taken = int(checkpoint.name.removeprefix("step-"))
    assert len(steps(tmp_path / "run")) == taken

    longer = f"training.max_steps={taken + 2}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(*torchrun, "-m", "graftwork", "train", "-c", str(path), "--resume", longer)
    one = {**TRAINING, "gradient_accumulation_steps": 2, "max_steps": 20, "output_dir": str(tmp_path / "one")}
    run(*GRAFT, "train", "-c", str(save(tmp_path / "one.yaml", toys.config(tmp_path, llama, data, training=one))))
    # After hundreds of steps with a high rate a difference in the last digit has grown
    compared = min(20, taken + 2)
    assert steps(tmp_path / "run")[:compared] == pytest.approx(steps(tmp_path / "one")[:compared], rel=1e-4)
    assert len(steps(tmp_path / "run")) == taken + 2


@pytest.mark.slow
def test_one_that_is_killed_stops_the_others(toys, llama, chat, tmp_path) -> None:
    config = toys.config(tmp_path, llama, {"train": chat["train"]}, training=TRAINING)
    launcher = start(*GRAFT, "train", "-c", str(save(tmp_path / "run.yaml", config)), "--nproc-per-node", "2")
    wait_for_steps(launcher, tmp_path / "run", 2)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    [second] = [child for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes()]
    os.kill(int(second), signal.SIGKILL)
    said, notices = launcher.communicate(timeout=LIMIT_S)
    assert launcher.returncode == 137, said + notices
    assert "Error: rank 1 of 2 was ended by SIGKILL (out of memory?)" in notices
    for child in children:
        assert not Path(f"/proc/{child}").exists()


@pytest.mark.slow
def test_accelerate_launch(toys, llama, chat, tmp_path) -> None:
    training = {**TRAINING, "max_steps": 2}
    path = save(tmp_path / "run.yaml", toys.config(tmp_path, llama, {"train": chat["train"]}, training=training))
    # What it takes by itself where there are GPUs; on a CPU it would start one process
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    run(*accelerate, "-m", "graftwork", "train", "-c", str(path))
    assert len(steps(tmp_path / "run")) == 2
    assert json.loads((tmp_path / "run/run.json").read_text())["parallel"] == "DDP over 2 processes"
