"""Attention as products of a whole row against the same in functions that autograd follows, and against gradcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftwork_native import products
from graftwork_native.attention import Segments, attend_by_products, parts_of_row
from graftwork_native.products import pieces_of, segment_products

LENGTHS, STEMS = (7, 1, 12, 5, 4), (0, 0, 0, 9, 0)
SCALING = 0.3


def operands(heads: int, dtype: torch.dtype = torch.float32, width: int = 8) -> list[torch.Tensor]:
    """Query, key and value as a model gives them: heads are the second of three axes in memory."""
    generator = torch.Generator().manual_seed(4)
    shape = (sum(LENGTHS), width)
    made = [torch.randn(shape[0], n, shape[1], generator=generator).to(dtype) for n in (heads, 2, 2)]
    return [tensor.transpose(0, 1).requires_grad_() for tensor in made]


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> torch.Tensor:
    parts = parts_of_row(query, key, value, Segments(LENGTHS, STEMS))
    return torch.cat([attend_by_products(*part, SCALING, 0.0, window, None) for part in parts])


def fast(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> torch.Tensor:
    return segment_products(query, key, value, list(pieces_of(LENGTHS, STEMS, window)), SCALING, window)


@pytest.mark.parametrize("size", [256, 5, 1], ids=["whole segments", "pieces", "single queries"])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("heads", [2, 6], ids=["equal heads", "grouped heads"])
def test_values_and_gradients(size: int, window: int | None, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE_QUERIES", size)
    ours, reference = operands(heads), operands(heads)
    found, wanted = fast(*ours, window), plain(*reference, window)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    probe = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    for one, other in zip(
        torch.autograd.grad(found, ours, probe), torch.autograd.grad(wanted, reference, probe), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 3])
def test_gradients_are_those_of_small_differences(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE_QUERIES", 5)
    assert torch.autograd.gradcheck(lambda *tensors: fast(*tensors, window), operands(4, torch.float64, width=2))


def test_in_bfloat16_it_is_nearly_as_exact_as_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both against float64. The keys' gradients are sums over pieces, three here, each rounded again."""
    monkeypatch.setattr(products, "PIECE_QUERIES", 4)

    def errors(attend: Any) -> list[float]:
        halves = operands(6, torch.bfloat16)
        exact = [tensor.detach().double().requires_grad_() for tensor in halves]
        probe = torch.randn(sum(LENGTHS), 6, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
        found = torch.autograd.grad(attend(*halves, None), halves, probe)
        wanted = torch.autograd.grad(plain(*exact, None), exact, probe.double())
        return [float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)]

    for ours, theirs in zip(errors(fast), errors(plain), strict=True):
        assert ours < 1.3 * theirs


def test_a_piece_has_no_keys_that_it_does_not_see() -> None:
    """Those after its last token and, from the second on, those before the window of its first one."""
    pieces = list(pieces_of((600,), (), 100))
    assert pieces == [
        (slice(0, 200), [slice(0, 200)]),
        (slice(200, 400), [slice(101, 400)]),
        (slice(400, 600), [slice(301, 600)]),
    ]


def test_without_gradients_nothing_is_kept() -> None:
    tensors = [tensor.detach() for tensor in operands(4)]
    with torch.no_grad():
        assert fast(*tensors, None).grad_fn is None
    assert torch.equal(fast(*tensors, None), fast(*operands(4), None))
