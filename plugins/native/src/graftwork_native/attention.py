"""Segment attention: many samples in one row, and no token sees another sample's.

Shapes: H query heads, K key and value heads, G = H / K, T tokens in the row, S tokens in one segment, D head width.

A row is given to the model as usual, with two additions: the keyword ``segments``, which transformers' models
hand down to their attention function, and :func:`segment_mask` as ``attention_mask``. A four-dimensional mask
passes through transformers' mask code untouched, so no T x T mask is ever made; and a model that drops the
keyword on the way meets that mask without it, which is an error here and not a silent leak between samples.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "graftwork_segments"

HANDLED = frozenset(
    {"softcap", "sliding_window", "position_ids", "cache_position", "is_causal", "use_cache", "output_attentions",
     "output_hidden_states", "output_router_logits"}
)  # fmt: skip
"""Keywords of an attention call that are applied here, or that change nothing in a training row."""

MATMUL_LIMIT = 1024
"""Segments up to this length are attended to with two batched products on a CPU: 1.5 to 3 times faster there than
the flash kernel, forward and backward together, and bfloat16 scores are what transformers' eager attention has.
Beyond it the S x S scores would be what fills the memory."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the samples of a row lie: their lengths, and on CUDA their bounds 0, l1, l1 + l2, ... as int32."""

    lengths: tuple[int, ...]
    bounds: torch.Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> Segments:
        """The bounds go to the device once for a row, not once for each layer."""
        if device.type != "cuda":
            return cls(lengths)
        return cls(lengths, torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device))


def segment_mask(device: torch.device) -> torch.Tensor:
    """The ``attention_mask`` that goes with ``segments``: one element, never read."""
    return torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device)


def register() -> None:
    """Makes :data:`NAME` an ``attn_implementation``. Without ``segments`` it behaves as ``sdpa`` does."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, segment_attention)
    # transformers gives no mask at all to a name without a mask function, and padding would be attended to.
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


@contextmanager
def recorded_windows() -> Iterator[list[int | None]]:
    """The ``sliding_window`` of every call of the attention function within the block."""
    windows: list[int | None] = []

    def record(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        windows.append(kwargs.get("sliding_window"))
        return segment_attention(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(NAME, record)
    try:
        yield windows
    finally:
        register()


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,  # [1, K, T, D]
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function as transformers calls it; gives [1, T, H, D]."""
    if segments is None:
        refuse_lost_segments(module, query, attention_mask)
        if kwargs.get("softcap") is not None:
            return attend_capped(query, key, value, attention_mask, scaling, dropout, kwargs["softcap"]), None
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    refuse_unknown(module, kwargs)
    # Rotary embeddings leave float32 queries and keys beside autocast values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
    with torch.autocast(query.device.type, enabled=False):
        if segments.bounds is not None and softcap is None and dropout == 0.0 and value.dtype != torch.float32:
            return attend_varlen(query, key, value, segments, scaling, window)[None], None
        parts = zip(*(tensor[0].split(segments.lengths, dim=1) for tensor in (query, key, value)), strict=True)
        outputs = [attend(q, k, v, scaling, dropout=dropout, window=window, softcap=softcap) for q, k, v in parts]
        return torch.cat(outputs)[None], None


def refuse_lost_segments(module: nn.Module, query: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
    """A packed row whose segments got lost on the way would leak between samples."""
    if attention_mask is not None and attention_mask.shape == (1, 1, 1, 1) and query.shape[2] > 1:
        raise ModelError(
            f"{type(module).__name__} did not hand the keyword `segments` down to its attention, so the samples of a "
            "row would see each other; set training.trainer_kwargs.layout: padded"
        )


def refuse_unknown(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """A keyword that is swallowed (attention sinks, a position bias) would be a silent bug; so would a direction."""
    if not getattr(module, "is_causal", True):
        raise ModelError(
            f"{type(module).__name__} attends to later tokens too (use_bidirectional_attention), which segment "
            "attention does not; set training.trainer_kwargs.layout: padded"
        )
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in HANDLED)
    if unknown:
        raise ModelError(
            f"{type(module).__name__} asks its attention for {', '.join(unknown)}, which segment attention does not "
            "know; set training.trainer_kwargs.layout: padded"
        )


def attend_capped(
    query: torch.Tensor,  # [B, H, T, D]
    key: torch.Tensor,  # [B, K, S, D]
    value: torch.Tensor,  # [B, K, S, D]
    attention_mask: torch.Tensor | None,  # [B, 1, T, S], true where a token is seen
    scaling: float | None,
    dropout: float,
    softcap: float,
) -> torch.Tensor:
    """Attention without segments where scores are capped, which PyTorch's kernel would leave out without a word.

    Gives [B, T, H, D].
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap))
    if attention_mask is None:
        length, keys = scores.shape[2:]
        attention_mask = torch.ones((length, keys), dtype=torch.bool, device=scores.device).tril(keys - length)
    scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(torch.softmax(scores, dim=-1), dropout, training=dropout > 0)
    return (weights @ value).transpose(1, 2)


def attend(
    query: torch.Tensor,  # [H, S, D]
    key: torch.Tensor,  # [K, S, D]
    value: torch.Tensor,  # [K, S, D]
    scaling: float,
    *,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention within one segment; gives [S, H, D]."""
    length = query.shape[1]
    if softcap is not None or (query.device.type == "cpu" and length <= MATMUL_LIMIT):
        return attend_by_products(query, key, value, scaling, dropout, window, softcap)
    mask = None if window is None or window >= length else visible(length, window, query.device)
    output = F.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return output[0].transpose(0, 1)


def attend_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """:func:`attend` written out. The G query heads of one key head are rows of one product."""
    heads, length, width = query.shape
    groups = heads // key.shape[0]
    rows = query.reshape(-1, groups * length, width)  # [K, G*S, D]
    bias = hidden_bias(length, window, query.dtype, query.device).repeat(groups, 1)  # [G*S, S]
    if softcap is None:
        scores = torch.baddbmm(bias, rows, key.transpose(1, 2), alpha=scaling)  # [K, G*S, S]
    else:
        scores = softcap * torch.tanh(torch.bmm(rows, key.transpose(1, 2)) * (scaling / softcap)) + bias
    weights = F.dropout(torch.softmax(scores, dim=-1), dropout, training=dropout > 0)
    return torch.bmm(weights, value).view(heads, length, width).transpose(0, 1)


def attend_varlen(
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, K, T, D]
    value: torch.Tensor,  # [1, K, T, D]
    segments: Segments,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """All segments in one kernel, on CUDA in half precision; gives [T, H, D]."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(segments.lengths)
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cast("torch.Tensor", segments.bounds),
        cast("torch.Tensor", segments.bounds),
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("torch.Tensor", output)  # a tuple only where its auxiliary outputs are asked for


def visible(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[S, S], true where a token is seen: itself, and the ``window`` - 1 tokens before it."""
    seen = torch.ones((length, length), dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


def hidden_bias(length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[S, S], what is added to the scores: minus infinity where a token is not seen."""
    size = max(256, 1 << (length - 1).bit_length())
    return square_bias(size, window, dtype, device)[:length, :length]


@lru_cache(maxsize=4)
def square_bias(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The bias of a whole square, of which every shorter segment's is a corner."""
    return torch.zeros((size, size), dtype=dtype, device=device).masked_fill_(
        ~visible(size, window, device), float("-inf")
    )
