"""One measurement of TRL's ``SFTTrainer`` in one of its settings: prints one line of JSON."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from typing import Any

from graftwork.runs.memory import highest_resident_bytes

WARM_UP = 3

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no checkpointing": {"gradient_checkpointing": False},
    "packed": {"gradient_checkpointing": False, "packing": True, "per_device_train_batch_size": 2},
    "packed + checkpointing": {"packing": True, "per_device_train_batch_size": 2},
    "padding-free": {"gradient_checkpointing": False, "padding_free": True, "max_length": None},
    "padding-free + checkpointing": {"padding_free": True, "max_length": None},
}
"""Over TRL's own defaults. A packed sequence has 1,024 tokens, so two are about what eight conversations are."""


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
    counts: list[tuple[int, int]] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    class Counting(trl.SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            tokens = int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            counts.append((tokens, int((inputs["labels"] != -100).sum())))
            loss = super().training_step(model, inputs, *args, **kwargs)
            losses.append(float(loss))
            return loss

    options = {"per_device_train_batch_size": 8, **SETTINGS[setting]}
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.SFTConfig(
            output_dir=folder,
            max_steps=WARM_UP + steps,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            assistant_only_loss=True,
            train_sampling_strategy="sequential",
            learning_rate=2e-5,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **options,
        )
        trainer = Counting(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=arguments,
            train_dataset=datasets.load_dataset("json", data_files=data, split="train", cache_dir=folder),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[Clock()],
        )
        trainer.train()
    return {
        "seconds": [end - begin for begin, end in itertools.pairwise(ends)][WARM_UP - 1 :],
        "tokens": [tokens for tokens, _ in counts[WARM_UP:]],
        "labels": [labels for _, labels in counts[WARM_UP:]],
        "first_loss": losses[0],
        "peak_rss_bytes": highest_resident_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
