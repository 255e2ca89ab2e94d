"""The head's product and the cross-entropy in pieces, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from graftwork_native import loss
from graftwork_native.loss import head_loss, plain_loss

SCALE = 0.37


def inputs(labels: int = 23, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(labels, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(50, 16, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(50, (labels,), generator=generator)


@pytest.fixture(params=[64 << 20, 4 * 50 * 16], ids=["one piece", "several pieces"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PIECE_BYTES", request.param)


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("labels", [23, 16, 32, 1])
def test_loss_and_gradients(labels: int) -> None:
    hidden, weight, target = inputs(labels)
    wanted = F.cross_entropy(hidden @ weight.T, target, reduction="sum") * SCALE
    gradients = torch.autograd.grad(wanted * 3.0, (hidden, weight))
    for found in (head_loss(hidden, weight, target, SCALE), plain_loss(hidden @ weight.T, target, SCALE)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
        for one, other in zip(torch.autograd.grad(found * 3.0, (hidden, weight)), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(head_loss(hidden, weight, target, SCALE), wanted, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient(frozen: str) -> None:
    hidden, weight, target = inputs()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    head_loss(hidden, weight, target, SCALE).backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


@pytest.mark.usefixtures("_pieces")
def test_bfloat16_states_and_float32_weight() -> None:
    """The product is autocast's; the loss is float32 and the weight's gradient in the weight's type."""
    hidden, weight, target = inputs()
    half = hidden.detach().bfloat16().requires_grad_()
    found = head_loss(half, weight, target, SCALE)
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(half.detach(), weight)
    torch.testing.assert_close(found, F.cross_entropy(logits.float(), target, reduction="sum") * SCALE)
    found.backward()
    exact = torch.autograd.grad(plain_loss(hidden @ weight.T, target, SCALE), (hidden, weight))
    assert half.grad is not None
    assert weight.grad is not None
    assert (half.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(half.grad.float(), exact[0], rtol=0.05, atol=0.02)
    torch.testing.assert_close(weight.grad, exact[1], rtol=0.05, atol=0.05)


def test_no_labels_is_no_loss() -> None:
    hidden, weight, target = inputs(0)
    found = head_loss(hidden, weight, target, 1.0)
    assert found.item() == 0.0
    found.backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_label_without_a_chance_has_a_finite_loss(dtype: torch.dtype) -> None:
    """Its probability is zero in float32; its loss is not infinite."""
    hidden, weight, _ = inputs(labels=5, dtype=dtype)
    large, worst = hidden.detach() * 300, (hidden @ weight.T).argmin(dim=1)
    exact = F.cross_entropy((large @ weight.detach().T).double(), worst, reduction="sum")
    assert exact / len(worst) > 500
    found = head_loss(large.requires_grad_(), weight, worst, 1.0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    found.backward()
    assert large.grad is not None
    assert large.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_a_piece_change_no_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = (torch.randn(13, 50, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    target = torch.arange(13)
    whole = logits.clone()
    losses = loss.losses_and_grad_(whole, target, SCALE)
    torch.testing.assert_close(losses, F.cross_entropy(logits.float(), target, reduction="none"))
    exact = logits.float().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(plain_loss(exact, target, SCALE), exact)
    torch.testing.assert_close(whole, gradient.to(dtype), rtol=1e-5 if dtype == torch.float32 else 0.01, atol=1e-6)
    monkeypatch.setattr(loss, "BLOCK_BYTES", 4 * 50 * 4)
    assert torch.equal(loss.losses_and_grad_(logits, target, SCALE), losses)
    assert torch.equal(logits, whole)


def test_pieces_are_bounded_by_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PIECE_BYTES", 4 * 50 * 16)
    seen = []
    products_of = loss.products_of
    monkeypatch.setattr(loss, "products_of", lambda some, weight: seen.append(len(some)) or products_of(some, weight))
    head_loss(*inputs(40), SCALE)
    assert seen == [16, 16, 8]
