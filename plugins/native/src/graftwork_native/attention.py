"""Segment attention: many samples in one row, and no token sees another sample's.

Shapes: H query heads, K key and value heads, G = H / K, T tokens in the row, S tokens in one segment, D head width,
N tokens that a segment sees: its own S, and those of its stem.

A segment may grow from a stem: from the first tokens of the segment before it, which it sees as its own beginning
and which are computed once. That is how the two answers of a preference pair share their prompt.

A row is given to the model as usual, with two additions: the keyword ``segments``, which transformers' models
hand down to their attention function, and :func:`segment_mask` as ``attention_mask``. A four-dimensional mask
passes through transformers' mask code untouched, so no T x T mask is ever made; and a model that drops the
keyword on the way meets that mask without it, which is an error here and not a silent leak between samples.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graftwork.errors import ModelError
from graftwork_native.masks import hidden_bias, visible
from graftwork_native.products import pieces_of, segment_products

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
    """Where the samples of a row lie: their lengths, and on CUDA their bounds 0, l1, l1 + l2, ... as int32.

    ``stems[i]`` is how many of the first tokens of segment i - 1 segment i also begins with; empty where none does.
    On CUDA a row with stems has ``keys``, the places of the keys that its segments see, one segment's after the
    other's, and their own bounds.
    """

    lengths: tuple[int, ...]
    stems: tuple[int, ...] = ()
    bounds: torch.Tensor | None = field(default=None, compare=False)
    keys: torch.Tensor | None = field(default=None, compare=False)
    key_bounds: torch.Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device, stems: tuple[int, ...] = ()) -> Segments:
        """The bounds go to the device once for a row, not once for each layer."""
        if device.type != "cuda":
            return cls(lengths, stems)
        bounds = bounds_of(lengths, device)
        if not stems:
            return cls(lengths, stems, bounds)
        seen = tuple(length + stem for length, stem in zip(lengths, stems, strict=True))
        return cls(lengths, stems, bounds, places_of_keys(lengths, stems).to(device), bounds_of(seen, device))

    @property
    def longest(self) -> int:
        """N of the segment that sees most."""
        return max(map(sum, zip(self.lengths, self.stems, strict=True))) if self.stems else max(self.lengths)


def bounds_of(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """0, l1, l1 + l2, ..."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def places_of_keys(lengths: tuple[int, ...], stems: tuple[int, ...]) -> torch.Tensor:
    """Each segment's stem and its own tokens, as places in the row; [sum of N]."""
    starts = [0, *accumulate(lengths)]
    pieces = [
        torch.cat([torch.arange(before, before + stem), torch.arange(start, start + length)])
        for before, start, length, stem in zip([0, *starts], starts, lengths, stems, strict=False)
    ]
    return torch.cat(pieces)


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
        if segments.longest <= MATMUL_LIMIT and query.device.type == "cpu" and softcap is None and dropout == 0.0:
            pieces = list(pieces_of(segments.lengths, segments.stems, window))
            return segment_products(query[0], key[0], value[0], pieces, scaling, window)[None], None
        outputs = [
            attend(q, k, v, scaling, dropout=dropout, window=window, softcap=softcap)
            for q, k, v in parts_of_row(query[0], key[0], value[0], segments)
        ]
        return torch.cat(outputs)[None], None


def parts_of_row(
    query: torch.Tensor,  # [H, T, D]
    key: torch.Tensor,  # [K, T, D]
    value: torch.Tensor,  # [K, T, D]
    segments: Segments,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Each segment's queries [H, S, D], and the keys and values [K, N, D] that it sees."""
    stems = segments.stems or (0,) * len(segments.lengths)
    before_k = before_v = key[:, :0]
    # Not slices of the row: each of those would make a gradient as large as the row.
    parts = zip(*(tensor.split(segments.lengths, dim=1) for tensor in (query, key, value)), stems, strict=True)
    for q, k, v, stem in parts:
        if stem:
            yield q, torch.cat([before_k[:, :stem], k], dim=1), torch.cat([before_v[:, :stem], v], dim=1)
        else:
            yield q, k, v
        before_k, before_v = k, v


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
    key: torch.Tensor,  # [K, N, D]
    value: torch.Tensor,  # [K, N, D]
    scaling: float,
    *,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention within one segment, whose last token is the last that is seen; gives [S, H, D]."""
    length, keys = query.shape[1], key.shape[1]
    if softcap is not None or (query.device.type == "cpu" and keys <= MATMUL_LIMIT):
        return attend_by_products(query, key, value, scaling, dropout, window, softcap)
    # PyTorch's own causal mask would put the first of fewer queries at the first key.
    plain = length == keys and (window is None or window >= keys)
    mask = None if plain else visible(keys, window, query.device)[-length:]
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
    bias = hidden_bias(length, key.shape[1], window, query.dtype, query.device).repeat(groups, 1)  # [G*S, N]
    if softcap is None:
        scores = torch.baddbmm(bias, rows, key.transpose(1, 2), alpha=scaling)  # [K, G*S, N]
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

    keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
    if segments.keys is not None:
        keys, values = keys[segments.keys], values[segments.keys]
    output = varlen_attn(
        query[0].transpose(0, 1),
        keys,
        values,
        cast("torch.Tensor", segments.bounds),
        cast("torch.Tensor", segments.bounds if segments.key_bounds is None else segments.key_bounds),
        max(segments.lengths),
        segments.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("torch.Tensor", output)  # a tuple only where its auxiliary outputs are asked for
