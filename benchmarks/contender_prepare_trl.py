"""One preparation by TRL's ``SFTTrainer``, as before its first step: prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any

from graftwork.runs.memory import highest_resident_bytes


def main(model: str, data: str, processes: int) -> dict[str, Any]:
    """Reads the file and makes packed rows of it in ``processes`` processes; nothing is cached from before."""
    import logging

    logging.disable(logging.WARNING)
    import datasets
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    datasets.disable_progress_bars()
    seconds = cpu_seconds = 0.0

    class Timed(trl.SFTTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal seconds, cpu_seconds
            begin, used = time.perf_counter(), sum(os.times()[:4])
            prepared = super()._prepare_dataset(*args, **kwargs)
            seconds, cpu_seconds = seconds + time.perf_counter() - begin, cpu_seconds + sum(os.times()[:4]) - used
            return prepared

    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.SFTConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            assistant_only_loss=True,
            packing=True,
            max_length=1024,
            dataset_num_proc=processes if processes > 1 else None,
            report_to=[],
            disable_tqdm=True,
        )
        model_of = AutoModelForCausalLM.from_pretrained(model)
        tokenizer = AutoTokenizer.from_pretrained(model)
        begin, used = time.perf_counter(), sum(os.times()[:4])
        rows = datasets.load_dataset("json", data_files=data, split="train", cache_dir=folder)
        seconds, cpu_seconds = time.perf_counter() - begin, sum(os.times()[:4]) - used
        trainer = Timed(model=model_of, args=arguments, train_dataset=rows, processing_class=tokenizer)
        prepared = trainer.train_dataset.with_format("numpy")
        tokens = sum(len(ids) for ids in prepared["input_ids"])
        trained = sum(int((labels != -100).sum()) for labels in prepared["labels"])
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens": tokens,
        "supervised_tokens": trained,
        "peak_rss_bytes": highest_resident_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
