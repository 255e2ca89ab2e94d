"""The loss on held-out data, and what the model says to a few prompts."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from graftwork_native.forward import Forward, base_of, evaluating, with_own_prompts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from graftwork.data.batch import Row
    from graftwork_native.spread import Spread


SHOWN_BEGINNING, SHOWN_REFERENCE = 24, 96
"""Tokens of a document that are the prompt, and of what really follows."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of the report: what is shown, its tokens, and the answer in the data if there is one."""

    text: str
    input_ids: tuple[int, ...]
    reference: str | None = None


def evaluate(model: nn.Module, objective: Spread, rows: Iterable[Row]) -> dict[str, float]:
    """The mean loss over all ``rows`` as ``eval_loss``, and the objective's further metrics."""
    begin = time.perf_counter()
    total = weight = labels = 0.0
    with evaluating(model):
        for row, counts in objective.share(rows):
            total += float(objective.loss(row, counts))
            weight += objective.weight(row) * counts
            labels += row.num_labels * counts
    total, weight, labels = objective.world.sum([total, weight, labels])
    return {
        "eval_loss": total / max(1, weight),
        **{f"eval_{name}": further / max(1, weight) for name, further in objective.sums().items()},
        "eval_tokens": int(labels),
        "eval_time_s": round(time.perf_counter() - begin, 3),
    }


def complete(
    forward: Forward,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Iterable[Prompt],
    stop_ids: frozenset[int],
    max_new_tokens: int,
) -> list[str]:
    """The greedy completion of each prompt. Draws no random numbers, so that a run is the same with and without."""
    texts = []
    limits = forward.limits
    positions = limits.positions if limits and limits.positions else sys.maxsize
    with evaluating(forward.model), forward.autocast():
        for prompt in prompts:
            ids = torch.tensor([prompt.input_ids], device=forward.device)
            room = positions - ids.shape[1]
            if room < 1:
                texts.append("")
                continue
            output = base_of(forward.model).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(max_new_tokens, room),
                do_sample=False,
                eos_token_id=sorted(stop_ids) or None,
                pad_token_id=min(stop_ids, default=0),
            )
            texts.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def prompts_of(rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast, count: int, *, documents: bool) -> list[Prompt]:
    """The first ``count`` held-out samples as prompts: a conversation up to its answer, a document's beginning."""
    samples = ((ids, labels) for row in rows for ids, labels in samples_of(row))
    prompts = []
    for ids, first_label in islice(samples, count):
        end = min(SHOWN_BEGINNING, len(ids) // 2) if documents else first_label + 1
        prompts.append(
            Prompt(
                text=tokenizer.decode(ids[:end], skip_special_tokens=True),
                input_ids=tuple(ids[:end]),
                reference=tokenizer.decode(ids[end : end + SHOWN_REFERENCE], skip_special_tokens=True),
            )
        )
    return prompts


def samples_of(row: Row) -> Iterator[tuple[list[int], int]]:
    """Each segment that has labels: its tokens, and the place in it where the first one is predicted. Of a pair only
    the chosen answer is shown.
    """
    apart = row if row.pairs is None else with_own_prompts(row)
    places, start = apart.label_positions.numpy(), 0
    for number, ids in enumerate(apart.input_ids[0].split(apart.segment_lengths)):
        first = int(np.searchsorted(places, start))
        shown = row.pairs is None or number % 2 == 0
        if shown and first < len(places) and places[first] < start + len(ids):
            yield ids.tolist(), int(places[first]) - start
        start += len(ids)
