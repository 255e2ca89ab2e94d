"""A run on a local Ray cluster of two workers takes the steps of one process."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from graftwork import load_config, train
from graftwork.errors import RunError, UsageError
from graftwork.runs.checkpoints import damage
from graftwork.runs.signals import Stopped, exit_code
from graftwork_ray.engine import Cluster, explained, fit, shared_environment, work

SIZE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": None,
}


def save_model(folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(folder)
    words = {"<unk>": 0, "<eos>": 1, **{f"w{number}": number + 2 for number in range(60)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


def write_config(folder: Path, name: str, accumulation: int) -> Path:
    rows = [{"text": " ".join(f"w{(number * word) % 60}" for word in range(6 + number % 5))} for number in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"model_name": str(folder / "model"), "device_map": "cpu"},
        "data": {"train": {"datasets": [{"dataset_name": "text", "dataset_path": str(folder / "train.jsonl")}]}},
        "training": {
            "output_dir": str(folder / name),
            "max_steps": 3,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": accumulation,
            "mixed_precision_dtype": "none",
            "enable_tensorboard": False,
            "trainer_kwargs": {"sample_count": 0},
        },
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


def graft(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "graftwork", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(300)  # 60 s on a quiet machine, most of them imports in six processes
def test_two_workers_take_the_steps_of_one_process(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    train(load_config(write_config(tmp_path, "alone", 2)))
    said = graft("ray-train", "-c", str(write_config(tmp_path, "cluster", 1)), "--num-workers", "2")
    assert f"report   {tmp_path / 'cluster'}/report.html" in said
    assert losses(tmp_path / "cluster") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    record = json.loads((tmp_path / "cluster/run.json").read_text())
    assert record["processes"] == 2
    assert record["status"] == "finished"
    assert (tmp_path / "cluster/final/model.safetensors").exists()


class Waiting:
    """Ray's trainer, as long as nobody has asked it to stop; ``finished``: it was at its end all the same."""

    def __init__(self, note: Path, *, finished: bool = False) -> None:
        self.note, self.finished = note, finished

    def fit(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while not self.note.exists():
            time.sleep(0.01)
        if self.finished:
            self.note.unlink()


def test_a_signal_is_a_note_to_the_workers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note = tmp_path / "ray" / "stop"
    with pytest.raises(Stopped) as caught, caplog.at_level(logging.WARNING, "graftwork_ray"):
        fit(Waiting(note), note)
    assert exit_code(caught.value) == 143
    assert "asking the workers to stop after their step and to save; a second signal stops them at once" in caplog.text
    assert not note.exists()


def test_a_run_that_was_at_its_end_is_not_stopped(tmp_path: Path) -> None:
    note = tmp_path / "stop"
    fit(Waiting(note, finished=True), note)
    note.write_text("15")  # of a run before
    fit(Waiting(note, finished=True), note)


def test_what_the_workers_fail_with_is_raised(tmp_path: Path) -> None:
    class Broken:
        def fit(self) -> None:
            raise ValueError("no such cluster")

    with pytest.raises(ValueError, match="no such cluster"):
        fit(Broken(), tmp_path / "stop")


def test_a_worker_that_finds_the_note_saves(tmp_path: Path) -> None:
    """Ray has the training run in a thread, where Python takes no signals."""
    save_model(tmp_path / "model")
    path = write_config(tmp_path, "run", 1)
    config = load_config(path, ["training.max_steps=100000", "training.logging_steps=10000"])
    note = tmp_path / "stop"
    note.write_text(str(int(signal.SIGTERM)))
    settings = {"config": config.to_yaml(), "resume": False, "folder": str(Path.cwd()), "environment": {}}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work, {**settings, "stop": str(note)}).result(timeout=50)
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    assert damage(checkpoint) is None
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "interrupted"
    assert note.exists()


class Failure(Exception):
    """As Ray's error of one worker: what it failed with is its ``cause``."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a hundred lines of tracebacks")
        self.cause = cause


class Failed(Exception):
    """As Ray's error of all of them."""

    def __init__(self, **failures: Any) -> None:
        super().__init__("a thousand lines of tracebacks")
        self.worker_failures = {int(name.removeprefix("worker_")): failure for name, failure in failures.items()}


def test_the_worker_that_says_why_is_the_one_that_is_heard() -> None:
    error = Failed(
        worker_0=Failure(ConnectionError("reset by peer")), worker_1=Failure(UsageError("rows.jsonl:3: no text"))
    )
    assert str(explained(error)) == "worker 1: rows.jsonl:3: no text"
    assert isinstance(explained(error), RunError)
    assert str(explained(ValueError("no such cluster"))) == "Ray Train: no such cluster"


def test_no_secret_goes_to_the_disk_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray stores what its workers are told."""
    for name in ("HF_TOKEN", "HF_HUB_TOKEN", "GRAFTWORK_S3_SECRET", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HF_HOME", "/models")
    shared = shared_environment()
    assert shared["HF_HOME"] == "/models"
    assert "secret" not in shared.values()


def test_a_cluster_is_local_where_nobody_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert Cluster(2).is_local
    assert not Cluster(2, address="auto").is_local
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not Cluster(2).is_local


def test_a_mistake_in_the_configuration_is_found_before_anything_starts(tmp_path: Path) -> None:
    from graftwork.errors import ConfigError
    from graftwork_ray.command import ray_train

    path = write_config(tmp_path, "run", 1)
    done = CliRunner().invoke(ray_train, ["-c", str(path), "--num-workers", "2", "training.max_stepps=1"])
    assert isinstance(done.exception, ConfigError)
    assert "did you mean max_steps?" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_ray_reports_to_nobody() -> None:
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
