"""Packed equals padded where a model turns by other factors once a row is longer than at first (Phi-3's LongRoPE)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from graftwork.registry import get_registry
from graftwork.testing import random_weights
from graftwork_native.attention import NAME, Segments, register, segment_mask

LENGTHS = (19, 5, 14)


def model(config: Any, attention: str) -> Any:
    register()
    found = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    found.load_state_dict(random_weights(config))
    return found.train()


def config_of(first: int) -> Any:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.5, 2.0],
        "long_factor": [1.2, 2.5, 9.0, 30.0],
        "original_max_position_embeddings": first,
    }
    family = get_registry().families["phi3"]
    return family.tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=first)


def padded(config: Any, rows: list[torch.Tensor]) -> tuple[torch.Tensor, Any]:
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    reference = model(config, "eager")
    logits = reference(ids, attention_mask=mask).logits
    return torch.cat([logits[i, : len(row) - 1] for i, row in enumerate(rows)]), reference


def packed(config: Any, rows: list[torch.Tensor]) -> tuple[torch.Tensor, Any]:
    found = model(config, NAME)
    logits = found(
        torch.cat(rows)[None],
        position_ids=torch.cat([torch.arange(len(row)) for row in rows])[None],
        attention_mask=segment_mask(torch.device("cpu")),
        segments=Segments(LENGTHS),
        use_cache=False,
    ).logits[0]
    return torch.cat([part[:-1] for part in logits.split(LENGTHS)]), found


@pytest.mark.parametrize("first", [12, 19, 64], ids=["a row is longer", "the longest is as long", "none is longer"])
def test_packed_is_padded_with_longrope(first: int) -> None:
    config = config_of(first)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, config.vocab_size, (length,), generator=generator) for length in LENGTHS]
    targets = torch.cat([row[1:] for row in rows])
    (found, ours), (expected, theirs) = packed(config, rows), padded(config, rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for logits in (found, expected):
        F.cross_entropy(logits, targets).backward()
    for (name, weight), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(
            weight.grad, other.grad, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
    long, short = config.rope_parameters["long_factor"], config.rope_parameters["short_factor"]
    turned = ours.model.rotary_emb.inv_freq * torch.tensor([10000.0 ** (i / 4) for i in range(4)])
    torch.testing.assert_close(1 / turned, torch.tensor(long if first < LENGTHS[0] else short))
