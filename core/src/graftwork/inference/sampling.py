"""How the next token is chosen. B rows, V vocabulary, T tokens so far.

The processors are our own composition of transformers' ones for two reasons. Sampling draws from a generator
per row (noise of Gumbel added to the scores, whose largest is then an exact sample of their softmax), so that
a row's completion does not depend on its neighbours, and generating in the middle of a training run leaves
the global random state alone. And the repetition penalty must not see the padding on the left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftwork.config import GenerationParams


def samples(params: GenerationParams) -> bool:
    """Whether tokens are drawn; otherwise the likeliest is taken."""
    return params.temperature > 0 if params.use_sampling is None else params.use_sampling


def check_params(params: GenerationParams) -> None:
    """Raises :class:`UsageError` where two values contradict each other."""
    if samples(params) and params.temperature == 0:
        raise UsageError("generation.use_sampling is true and temperature is 0: give a temperature, e.g. 0.7")
    if samples(params) and params.num_beams > 1:
        raise UsageError(
            f"generation.num_beams is {params.num_beams} and temperature {params.temperature:g}: a beam search does "
            "not sample; give temperature 0 or num_beams 1"
        )


def processors(params: GenerationParams, mask: torch.Tensor, seeds: Sequence[int]) -> LogitsProcessorList:
    """What shapes the scores ``[B, V]`` until their largest is the choice.

    ``mask`` ``[B, T]`` is 0 on the left padding of the prompts; ``seeds`` has one number per row.
    """
    chosen: list[LogitsProcessor] = []
    if params.repetition_penalty != 1.0:
        chosen.append(UnpaddedRepetitionPenalty(params.repetition_penalty, mask))
    if samples(params):
        chosen.extend(_warpers(params))
        chosen.append(GumbelNoise(seeds, mask.device))
    return LogitsProcessorList(chosen)


def _warpers(params: GenerationParams) -> list[LogitsProcessor]:
    """Temperature first, then the cuts, in transformers' order."""
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(params.temperature))]
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers


class GumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Adds noise under which the largest score is a sample of the softmax (Gumbel 1954; Maddison 2014)."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
        self._device = device

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self._generators]
        exponential = torch.stack(rows).to(self._device)  # [B, V]
        return scores - exponential.log()


class UnpaddedRepetitionPenalty(LogitsProcessor):  # type: ignore[misc]
    """transformers' repetition penalty, on rows whose padding is replaced by a token of the row itself."""

    def __init__(self, penalty: float, mask: torch.Tensor) -> None:
        self._penalty = RepetitionPenaltyLogitsProcessor(float(penalty))
        self._padding = mask == 0  # [B, T] of the prompts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # A beam search has several rows per prompt.
        padding = self._padding.repeat_interleave(input_ids.shape[0] // self._padding.shape[0], dim=0)
        width = padding.shape[1]
        seen = input_ids.clone()
        seen[:, :width] = torch.where(padding, input_ids[:, width - 1 : width], input_ids[:, :width])
        penalised: torch.Tensor = self._penalty(seen, scores)
        return penalised
