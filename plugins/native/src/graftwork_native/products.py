"""Attention within the segments of a row as matrix products, with the backward pass written out.

:func:`~graftwork_native.attention.attend_by_products` is the same for one segment, in functions that autograd follows;
it is the reference in the tests. Here the queries of a long segment go through in pieces, each with the keys up to its
own last token: most of the half of the square that nobody sees is not computed. And autograd has one function where
it had a dozen for each segment: nothing is split, put together and copied for it.

Shapes: H query heads, K key and value heads, G = H / K, T tokens in the row, D head width, C queries in one piece,
N tokens that a piece sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from graftwork_native.masks import hidden_bias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PIECE_QUERIES = 256
"""C at most: smaller pieces compute less that nobody sees, and call more functions."""

Piece = tuple[slice, list[slice]]
"""Places in the row: those of the queries, and those that they see, of the stem first."""


def segment_products(
    query: torch.Tensor,  # [H, T, D]
    key: torch.Tensor,  # [K, T, D]
    value: torch.Tensor,  # [K, T, D]
    pieces: Sequence[Piece],
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """Causal attention of each piece's queries to the tokens that it sees; gives [T, H, D]."""
    output: torch.Tensor = SegmentProducts.apply(query, key, value, pieces, scaling, window)  # type: ignore[no-untyped-call]
    return output


def pieces_of(lengths: Sequence[int], stems: Sequence[int], window: int | None) -> Iterator[Piece]:
    """The pieces of a row of segments, which may grow from stems; no piece sees what lies before its window."""
    before = start = 0
    for length, stem in zip(lengths, stems or [0] * len(lengths), strict=True):
        size = -(-length // -(-length // PIECE_QUERIES))
        for first in range(0, length, size):
            end = start + min(first + size, length)
            hidden = 0 if window is None else max(0, stem + first - window + 1)
            of_stem = [slice(before + hidden, before + stem)] if hidden < stem else []
            yield slice(start + first, end), [*of_stem, slice(start + max(0, hidden - stem), end)]
        before, start = start, start + length


class SegmentProducts(torch.autograd.Function):
    """Keeps what the softmax gave, as autograd would."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pieces: Sequence[Piece],
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        heads, length, width = query.shape
        groups = heads // len(key)
        output = query.new_empty((length, heads, width))
        kept = []
        for queries, seen in pieces:
            keys, rows = at(key, seen), grouped(query[:, queries], groups)
            bias = hidden_bias(queries.stop - queries.start, keys.shape[1], window, query.dtype, query.device)
            bias = bias if groups == 1 else bias.repeat(groups, 1)
            weights = torch.baddbmm(bias, rows, keys.mT, alpha=scaling)  # [K, G*C, N]
            torch.softmax(weights, dim=-1, out=weights)
            output[queries] = apart(torch.bmm(weights, at(value, seen)), heads).transpose(0, 1)
            if any(ctx.needs_input_grad):
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.pieces, ctx.scaling = pieces, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        heads, groups = len(query), len(query) // len(key)
        query_grad = torch.empty_like(query, memory_format=torch.contiguous_format)
        key_grad, value_grad = (torch.zeros_like(one, memory_format=torch.contiguous_format) for one in (key, value))
        for (queries, seen), weights in zip(ctx.pieces, kept, strict=True):
            rows, grads = grouped(query[:, queries], groups), grouped(grad_output[queries].transpose(0, 1), groups)
            scores_grad = torch.bmm(grads, at(value, seen).mT)  # [K, G*C, N]
            scores_grad = torch._softmax_backward_data(scores_grad, weights, -1, weights.dtype).mul_(ctx.scaling)
            query_grad[:, queries] = apart(torch.bmm(scores_grad, at(key, seen)), heads)
            add_at(key_grad, seen, torch.bmm(scores_grad.mT, rows))
            add_at(value_grad, seen, torch.bmm(weights.mT, grads))
        return query_grad, key_grad, value_grad, None, None, None


def at(row: torch.Tensor, seen: list[slice]) -> torch.Tensor:
    """What is seen of a row [K, T, D]; [K, N, D]."""
    parts = [row[:, places] for places in seen]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def add_at(total: torch.Tensor, seen: list[slice], grad: torch.Tensor) -> None:
    """Adds ``grad`` [K, N, D] to what :func:`at` would take of ``total`` [K, T, D]."""
    parts = grad.split([places.stop - places.start for places in seen], dim=1)
    for places, part in zip(seen, parts, strict=True):
        total[:, places] += part


def grouped(queries: torch.Tensor, groups: int) -> torch.Tensor:
    """[H, C, D] as [K, G*C, D]: the G query heads of one key head are rows of one product."""
    heads, length, width = queries.shape
    return queries.reshape(heads // groups, groups * length, width)


def apart(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[K, G*C, D] as [H, C, D]."""
    return rows.view(heads, -1, rows.shape[-1])
