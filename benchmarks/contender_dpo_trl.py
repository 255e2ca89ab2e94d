"""One measurement of TRL's ``DPOTrainer`` in one of its settings: prints one line of JSON."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from typing import Any

from graftwork.runs.memory import highest_resident_bytes

WARM_UP, PAIRS = 3, 4

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no checkpointing": {"gradient_checkpointing": False},
    "precomputed reference": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
    "precomputed reference + checkpointing": {"precompute_ref_log_probs": True},
}
"""Over TRL's own defaults, which recompute activations and keep a reference model. Its padding_free is switched off
in 1.16 ("temporarily unavailable").
"""


def main(model: str, data: str, steps: int, setting: str) -> dict[str, Any]:
    """Trains ``steps`` steps after the warm-up and times each from the end of the one before it."""
    import logging

    logging.disable(logging.WARNING)
    import datasets
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    datasets.disable_progress_bars()
    ends: list[float] = []
    first: dict[str, float] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if not first:
                first.update({name: float(logs[name]) for name in ("logps/chosen", "logps/rejected") if name in logs})

    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.DPOConfig(
            output_dir=folder,
            max_steps=WARM_UP + steps,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=PAIRS,
            train_sampling_strategy="sequential",
            learning_rate=1e-6,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=1,
            **SETTINGS[setting],
        )
        trainer = trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=arguments,
            # As many pairs as are trained on: what is computed before the first step is computed for these.
            train_dataset=datasets.load_dataset("json", data_files=data, split="train", cache_dir=folder).select(
                range(PAIRS * (WARM_UP + steps))
            ),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[Clock()],
        )
        begin = time.perf_counter()
        trainer.train()
        before = ends[0] - begin
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    precomputes = SETTINGS[setting].get("precompute_ref_log_probs", False)
    return {
        "seconds": seconds[WARM_UP - 1 :],
        "reference_seconds": [(before - seconds[0]) / (WARM_UP + steps)] if precomputes else [],
        "first": first,
        "peak_rss_bytes": highest_resident_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
