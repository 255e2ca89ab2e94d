"""One measurement of the loop that people write first, and that torchtune's recipes come down to: one line of JSON.

The model, its gradients and its optimizer are bfloat16 throughout; a batch is padded to its longest conversation; the
logits are made everywhere. Labels and order are those of the other contenders.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

from graftwork.runs.memory import highest_resident_bytes

WARM_UP, BATCH = 3, 8


def main(model: str, data: str, steps: int) -> dict[str, Any]:
    """Trains ``steps`` steps after the warm-up and times each from the end of the one before it."""
    import torch
    from transformers import AutoModelForCausalLM

    batches = read_batches(model, data)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5, weight_decay=0.0, fused=True)
    ends, counts, losses = [], [], []
    for _ in range(WARM_UP + steps):
        batch = next(batches)
        loss = network(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        counts.append((int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())))
        ends.append(time.perf_counter())
    return {
        "seconds": [end - begin for begin, end in itertools.pairwise(ends)][WARM_UP - 1 :],
        "tokens": [tokens for tokens, _ in counts[WARM_UP:]],
        "labels": [labels for _, labels in counts[WARM_UP:]],
        "first_loss": losses[0],
        "peak_rss_bytes": highest_resident_bytes(),
    }


def read_batches(model: str, data: str) -> Any:
    """Padded batches of ``BATCH`` conversations in their order, over and over."""
    from pathlib import Path

    import torch
    from transformers import AutoTokenizer

    from graftwork.chat import encode_chat

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line)["messages"] for line in Path(data).read_text(encoding="utf-8").splitlines()]
    samples = [encode_chat(row, tokenizer=tokenizer) for row in rows]
    groups = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
    for group in itertools.cycle(groups):
        longest = max(len(ids) for ids, _ in group)
        ids = torch.zeros((len(group), longest), dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for number, (tokens, trained) in enumerate(group):
            row = torch.tensor(tokens)
            ids[number, : len(row)], mask[number, : len(row)] = row, 1
            labels[number, : len(row)] = torch.where(torch.tensor(trained), row, -100)
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
