"""Which tokens a query sees, as a mask, and as what is added to its scores.

Shapes: S queries, the last of N tokens that they see.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def visible(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[S, S], true where a token is seen: itself, and the ``window`` - 1 tokens before it."""
    seen = torch.ones((length, length), dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


def hidden_bias(length: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[S, N], what is added to the scores of the last S of N tokens: minus infinity where a token is not seen."""
    size = max(256, 1 << (keys - 1).bit_length())
    return square_bias(size, window, dtype, device)[keys - length : keys, :keys]


@contextmanager
def own_biases() -> Iterator[None]:
    """Within the block nothing that was kept is met, and nothing from it is kept: where tensors have no memory."""
    square_bias.cache_clear()
    try:
        yield
    finally:
        square_bias.cache_clear()


@lru_cache(maxsize=4)
def square_bias(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The bias of a whole square, of which every shorter segment's is a corner."""
    return torch.zeros((size, size), dtype=dtype, device=device).masked_fill_(
        ~visible(size, window, device), float("-inf")
    )
