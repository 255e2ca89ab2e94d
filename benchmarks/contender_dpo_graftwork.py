"""One measurement of graftwork's native DPO: prints one line of JSON."""

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
    from collections.abc import Mapping

WARM_UP, PAIRS = 3, 4


def main(model: str, data: str, steps: int) -> dict[str, Any]:
    """Trains ``steps`` steps after the warm-up and times each from the end of the one before it."""
    from graftwork import DataParams, ModelParams, RunConfig, TrainingParams, train
    from graftwork_native import reference

    folder = Path(tempfile.mkdtemp())
    ends: list[float] = []
    lines: list[Mapping[str, float]] = []
    waited: list[float] = []
    measured = reference.measured

    def timed(*arguments: Any) -> Any:
        begin = time.perf_counter()
        found = measured(*arguments)
        waited.append(time.perf_counter() - begin)
        return found

    def listen(run: object, step: int, metrics: Mapping[str, float]) -> None:
        ends.append(time.perf_counter())
        lines.append(metrics)

    reference.measured = timed
    config = RunConfig(
        model=ModelParams(model_name=model),
        data=DataParams(
            train={
                "datasets": [{"dataset_name": "preference_pairs_jsonl", "dataset_path": data}],
                "max_length": 1024,
            }
        ),
        training=TrainingParams(
            trainer_type="NATIVE_DPO",
            output_dir=str(folder / "run"),
            max_steps=WARM_UP + steps,
            per_device_train_batch_size=PAIRS,
            mixed_precision_dtype="bf16",
            learning_rate=1e-6,
            save_steps=0,
            save_final_model=False,
            enable_tensorboard=False,
        ),
    )
    train(config, listeners=[listen])
    shutil.rmtree(folder)
    return {
        "seconds": [end - begin for begin, end in itertools.pairwise(ends)][WARM_UP - 1 :],
        "reference_seconds": waited[WARM_UP:],
        "first": {name: lines[0][name] for name in ("logps/chosen", "logps/rejected")},
        "peak_rss_bytes": highest_resident_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
