"""Which sample when: shuffling and mixing of datasets that are held whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from graftwork.config import DatasetParams, DatasetSplitParams

Pick = tuple[int, int]
"""The number of a dataset, and of a sample in it."""
DRAWN = 1000
"""Draws at once: the same as one by one, without a call for each."""


def epoch_order(sizes: Sequence[int], split: DatasetSplitParams, seed: int, epoch: int) -> list[Pick]:
    """The picks of one epoch: a function of its arguments alone, so that a resumed run finds its place again.

    Without proportions the datasets follow one another, shuffled as a whole where each of them is to be
    shuffled. With proportions each pick draws its dataset first, as ``datasets.interleave_datasets`` does.
    """
    queues = [
        indices(size, params, np.random.default_rng([dataset_seed(params, seed), number, epoch]))
        for number, (size, params) in enumerate(zip(sizes, split.datasets, strict=True))
    ]
    generator = np.random.default_rng([seed, len(sizes), epoch])
    proportions = [params.mixture_proportion for params in split.datasets]
    if any(proportion is not None for proportion in proportions):
        return interleave(queues, [proportion or 0.0 for proportion in proportions], split.mixture_strategy, generator)
    picks = [(number, int(index)) for number, queue in enumerate(queues) for index in queue]
    if len(queues) > 1 and all(params.shuffle for params in split.datasets):
        return [picks[place] for place in generator.permutation(len(picks))]
    return picks


def dataset_seed(params: DatasetParams, seed: int) -> int:
    """A dataset's own seed, or the split's."""
    return seed if params.seed is None else params.seed


def indices(size: int, params: DatasetParams, generator: np.random.Generator) -> NDArray[np.int64]:
    """The samples of one dataset: the first ``sample_count`` (repeated if there are fewer), shuffled if asked."""
    count = size if params.sample_count is None else params.sample_count
    chosen = np.resize(np.arange(size), count)
    return generator.permutation(chosen) if params.shuffle else chosen


def interleave(
    queues: Sequence[NDArray[np.int64]],
    proportions: Sequence[float],
    strategy: str,
    generator: np.random.Generator,
) -> list[Pick]:
    """Draws until the first dataset has run out, or until all have; the others begin again meanwhile."""
    picks: list[Pick] = []
    shares = np.asarray(proportions) / sum(proportions)  # they may be rounded: 0.33, 0.33, 0.34
    taken = [0] * len(queues)
    wanted = [number for number, proportion in enumerate(proportions) if proportion > 0 and len(queues[number])]
    enough = any if strategy == "first_exhausted" else all
    drawn: Iterator[int] = iter(())
    while wanted and not enough(taken[number] >= len(queues[number]) for number in wanted):
        number = next(drawn, -1)
        if number < 0:
            drawn = iter(generator.choice(len(queues), size=DRAWN, p=shares).tolist())
        elif len(queues[number]):
            picks.append((number, int(queues[number][taken[number] % len(queues[number])])))
            taken[number] += 1
    return picks
