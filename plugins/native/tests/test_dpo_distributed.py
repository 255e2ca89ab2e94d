"""Two processes train on pairs as one does: each computes its share of the reference, and the metrics are of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graftwork import train

GRAFT = Path(sys.executable).with_name("graft")


@pytest.mark.parametrize("fsdp", [{}, {"enable_fsdp": True}], ids=["DDP", "FSDP2"])
def test_two_processes_take_the_steps_of_one(toys: Any, tmp_path: Path, llama: Path, fsdp: dict[str, Any]) -> None:
    # An odd number of pairs: the last step of an epoch, and the evaluation, do not come out even.
    path = toys.pairs(tmp_path / "pairs.jsonl", 11)
    split = {"datasets": [{"dataset_name": "preference_pairs_jsonl", "dataset_path": str(path)}]}
    data = {"train": split, "validation": split}
    options = {"trainer_type": "NATIVE_DPO", "save_final_model": False}

    def config(name: str, size: int, **sections: Any) -> Any:
        training = {**options, "output_dir": str(tmp_path / name), "per_device_train_batch_size": size}
        return toys.config(tmp_path, llama, data, training=training, **sections)

    train(config("one", 4))
    (tmp_path / "two.yaml").write_text(config("two", 2, fsdp=fsdp).to_yaml())
    command = [str(GRAFT), "train", "-c", str(tmp_path / "two.yaml"), "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr

    lines, others = (toys.metrics(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in lines] == [line["step"] for line in others] == [0, 1, 2, 3, 4, 4]
    measured = [name for name in {**lines[0], **lines[1]} if "/" in name or name in ("loss", "eval_loss", "grad_norm")]
    assert len(measured) == 15
    for line, other in zip(lines, others, strict=True):
        for name in line.keys() & measured:
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-5), name
    one, two = (json.loads((tmp_path / name / "reference.json").read_text()) for name in ("one", "two"))
    assert one["log_probs"].keys() == two["log_probs"].keys()
    assert len(one["log_probs"]) == 11
    for key, value in one["log_probs"].items():
        assert two["log_probs"][key] == pytest.approx(value, rel=1e-5)
