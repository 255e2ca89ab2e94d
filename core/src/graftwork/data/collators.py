"""Samples to a padded batch: the plain form, for trainers that want it and as the reference of the packed one.

Shapes: B samples, S tokens in the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True)
class PaddedPairs:
    """Preference pairs as TRL's collator makes them: the chosen conversations, then the rejected ones."""

    pad_token_id: int

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, torch.Tensor]:
        """``input_ids``, ``attention_mask`` and ``completion_mask``, each [2B, S] int64.

        Row b is the prompt of pair b with the chosen answer, row B + b with the rejected one; ``completion_mask`` is
        1 where a token of the answer is trained. Raises ``ValueError`` for a sample that is no pair.
        """
        rows = [one for which in (0, 1) for one in (conversation(sample, which) for sample in samples)]
        shape = (len(rows), max(len(ids) for ids, _ in rows))
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
        for row, (ids, trained) in enumerate(rows):
            input_ids[row, : len(ids)] = torch.from_numpy(ids).long()
            attention_mask[row, : len(ids)] = 1
            completion_mask[row, : len(ids)] = torch.from_numpy(trained).long()
        return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


def conversation(sample: Sample, which: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The tokens of a pair's prompt with its answer number ``which``, and which of them are trained."""
    if sample.parts is None:
        raise ValueError(f"{sample.where} is no preference pair: dpo_with_padding takes those alone")
    prompt, chosen, rejected = sample.parts
    start = prompt + (chosen if which else 0)
    places = np.r_[:prompt, start : start + (rejected if which else chosen)]
    return sample.input_ids[places], sample.trained[places]
