"""What a model is compared with: one that knows how frequent each token is, and nothing else."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

    from graftwork.config import DatasetSplitParams


def unigram_entropy(train: Sequence[int], held_out: Sequence[int], vocab_size: int) -> float:
    """The cross-entropy in nat/token of the tokens ``held_out`` under the frequencies of ``train``.

    One is added to each count of the ``vocab_size`` tokens (Laplace), so that a token never seen is not impossible.
    """
    counts = Counter(train)
    total = len(train) + vocab_size
    return -sum(math.log((counts[token] + 1) / total) for token in held_out) / len(held_out)


def own_entropy(tokens: Sequence[int]) -> float:
    """The entropy in nat/token of the tokens' own frequencies: no unigram model can do better on them."""
    counts = Counter(tokens)
    return -sum(count * math.log(count / len(tokens)) for count in counts.values()) / len(tokens)


def predicted_tokens(
    split: DatasetSplitParams, tokenizer: PreTrainedTokenizerFast, max_length: int, stop_ids: frozenset[int]
) -> list[int]:
    """Every token that a model is asked to predict in ``split``: just those that its loss is the mean of."""
    from graftwork.data.loader import LoadRequest, load_indexed

    request = LoadRequest(
        split=split, tokenizer=tokenizer, max_length=max_length, stop_ids=stop_ids, seed=0, batch_size=8
    )
    return [token for row in load_indexed(request).rows() for token in row.labels.tolist()]
