"""Samples to a padded batch: the plain form, for trainers that want it and as the reference of the packed one.

Shapes: B samples, S tokens in the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graftwork.data.samples import Sample

IGNORED = -100
"""The label that cross-entropy leaves out, PyTorch's default ``ignore_index``."""


@dataclass(frozen=True, slots=True)
class Padded:
    """Pads on the right. Padding is never attended to and never a label, whatever its id."""

    pad_token_id: int

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, torch.Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels``, each [B, S] int64."""
        longest = max(len(sample) for sample in samples)
        input_ids = torch.full((len(samples), longest), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for row, sample in enumerate(samples):
            ids = torch.from_numpy(sample.input_ids).long()
            input_ids[row, : len(sample)] = ids
            attention_mask[row, : len(sample)] = 1
            labels[row, : len(sample)] = torch.where(torch.from_numpy(sample.trained), ids, IGNORED)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
