"""One measurement of graftwork's native trainer: prints one line of JSON."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.runs.memory import highest_resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WARM_UP = 3
METHODS: dict[str, tuple[str, dict[str, Any], int]] = {
    "sft": ("NATIVE_SFT", {"dataset_name": "text_sft"}, 8),
    "pretrain": ("NATIVE_PRETRAIN", {"dataset_name": "text"}, 2),
}
"""The trainer, its reader, and how many conversations or packed rows a step has."""


def main(
    model: str,
    data: str,
    steps: int,
    method: str = "sft",
    *,
    after_step: Callable[[int], None] = lambda step: None,
    **settings: Any,
) -> dict[str, Any]:
    """Trains ``steps`` steps after the warm-up and times each from the end of the one before it.

    ``settings`` stand over those of the run's ``training``.
    """
    from graftwork import DataParams, ModelParams, RunConfig, TrainingParams, train

    folder = Path(tempfile.mkdtemp())
    ends: list[float] = []
    lines: list[Mapping[str, float]] = []

    def listen(run: object, step: int, metrics: Mapping[str, float]) -> None:
        after_step(step)
        ends.append(time.perf_counter())
        lines.append(metrics)

    trainer, reader, batch_size = METHODS[method]
    split = {"datasets": [{"dataset_path": data, **reader}], "max_length": 1024, "pack": method == "pretrain"}
    config = RunConfig(
        model=ModelParams(model_name=model),
        data=DataParams(train=split),
        training=TrainingParams(
            **{
                "trainer_type": trainer,
                "output_dir": str(folder / "run"),
                "max_steps": WARM_UP + steps,
                "per_device_train_batch_size": batch_size,
                "mixed_precision_dtype": "bf16",
                "learning_rate": 2e-5,
                "save_steps": 0,
                "save_final_model": False,
                "enable_tensorboard": False,
                **settings,
            }
        ),
    )
    train(config, listeners=[listen])
    record = json.loads((folder / "run" / "run.json").read_text())
    shutil.rmtree(folder)
    times = [end - begin for begin, end in itertools.pairwise(ends)][WARM_UP - 1 :]
    measured = lines[WARM_UP:]
    return {
        "seconds": times,
        "tokens": [line["tokens"] for line in measured],
        "labels": [line["supervised_tokens"] for line in measured],
        "first_loss": lines[0]["loss"],
        "first_norm": lines[0]["grad_norm"],
        "peak_rss_bytes": highest_resident_bytes(),
        "rss_before_bytes": record["before_model_bytes"],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])))
