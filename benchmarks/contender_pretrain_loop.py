"""One measurement of a plain pretraining loop over the same transformers model: prints one line of JSON.

float32 weights, bfloat16 autocast, AdamW, two rows of 1,024 tokens a step, logits everywhere.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from graftwork.runs.memory import highest_resident_bytes

WARM_UP, BATCH, ROW = 3, 2, 1024


def main(model: str, text: str, steps: int) -> dict[str, Any]:
    """Trains ``steps`` steps after the warm-up and times each from the end of the one before it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = torch.tensor(tokenizer(Path(text).read_text(encoding="utf-8"), verbose=False).input_ids)
    rows = ids[: BATCH * ROW * (WARM_UP + steps)].view(-1, BATCH, ROW)
    network = AutoModelForCausalLM.from_pretrained(model).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5, weight_decay=0.0, fused=True)
    ends, losses = [], []
    for row in rows:
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(input_ids=row, labels=row, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        ends.append(time.perf_counter())
    return {
        "seconds": [end - begin for begin, end in itertools.pairwise(ends)][WARM_UP - 1 :],
        "tokens": [BATCH * ROW] * steps,
        "labels": [BATCH * (ROW - 1)] * steps,
        "first_loss": losses[0],
        "peak_rss_bytes": highest_resident_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
