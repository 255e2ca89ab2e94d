"""Batches with padding: those that TRL's collators make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from graftwork.data.collators import PaddedPairs
from graftwork.data.samples import Sample
from graftwork.registry import get_registry


def pair(seed: int) -> tuple[Sample, dict[str, Any]]:
    """A pair as our sample, and as TRL's example."""
    generator = np.random.default_rng(seed)
    parts = [generator.integers(5, 99, size).astype(np.int32) for size in generator.integers(1, 9, 3)]
    trained = [np.full(len(ids), bool(number)) for number, ids in enumerate(parts)]
    sizes = (len(parts[0]), len(parts[1]), len(parts[2]))
    sample = Sample(np.concatenate(parts), np.concatenate(trained), f"rows.jsonl:{seed}", sizes)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return sample, {name: ids.tolist() for name, ids in zip(names, parts, strict=True)}


@pytest.mark.parametrize("count", [1, 2, 7])
def test_pairs_are_padded_as_trl_pads_them(count: int) -> None:
    ours, theirs = zip(*(pair(seed) for seed in range(count)), strict=True)
    batch = PaddedPairs(pad_token_id=3)(ours)
    expected = DataCollatorForPreference(pad_token_id=3)(list(theirs))
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name


def test_what_is_no_pair_is_named() -> None:
    sample, _ = pair(0)
    plain = Sample(sample.input_ids, sample.trained, "rows.jsonl:7")
    with pytest.raises(ValueError, match=r"rows\.jsonl:7 is no preference pair: dpo_with_padding takes those alone"):
        PaddedPairs(pad_token_id=0)([plain])


def test_the_names_that_people_bring() -> None:
    collators = get_registry().collators
    schemas = {name: collators[name].schema for name in collators}
    assert schemas == {
        "text_with_padding": "chat", "text_completions_only_with_padding": "chat", "dpo_with_padding": "preference",
    }  # fmt: skip

    class Tokenizer:
        pad_token_id = None

    assert collators["dpo_with_padding"].build(Tokenizer(), None) == PaddedPairs(pad_token_id=0)
