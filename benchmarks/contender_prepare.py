"""One preparation by graftwork's native trainer, as before its first step: prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from graftwork.runs.memory import highest_resident_bytes


def main(model: str, data: str) -> dict[str, Any]:
    """From the file to the first packed row; whether samples are cached already is for GRAFTWORK_HOME to say."""
    from graftwork import ModelParams, build_tokenizer
    from graftwork.config import DatasetSplitParams
    from graftwork.data.indexed import IndexedLoader
    from graftwork.data.loader import LoadRequest, load_split
    from graftwork.tokenizers import stop_token_ids

    tokenizer = build_tokenizer(ModelParams(model_name=model))
    split = DatasetSplitParams(datasets=[{"dataset_name": "text_sft", "dataset_path": data}], pack=True)
    begin, used = time.perf_counter(), sum(os.times()[:4])
    loader = load_split(
        LoadRequest(
            split=split,
            tokenizer=tokenizer,
            max_length=1024,
            stop_ids=stop_token_ids(tokenizer),
            seed=0,
            batch_size=1,
        )
    )
    assert isinstance(loader, IndexedLoader)
    steps = loader.count_steps(1)
    next(loader.steps())
    seconds, cpu_seconds = time.perf_counter() - begin, sum(os.times()[:4]) - used
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens": loader.counts.tokens,
        "supervised_tokens": loader.counts.supervised_tokens,
        "rows": steps,
        "peak_rss_bytes": highest_resident_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
