"""The loss of a row: cross-entropy, summed over the labels and multiplied by a scale.

Two forms of the same number. :func:`plain_loss` is transformers' and PyTorch's own, and the reference in the
tests. :class:`HeadLoss` never holds all logits: it goes through the labels in pieces, makes the piece's logits,
its part of the loss and its gradients, and lets the logits go (as in Wijmans et al. 2024, "Cut Your Losses in
Large-Vocabulary Language Models", and Liger's fused linear cross-entropy, in plain PyTorch).

Shapes: L labels, W hidden width, V vocabulary, C labels in one piece, R rank of an adapter on the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

PIECE_BYTES = 64 << 20
"""Size of one piece's logits. A larger piece adds to the gradient of the head less often."""
BLOCK_BYTES = 4 << 20
"""Of a piece so much is in float32 at a time: what a CPU's cache holds while it goes over it again and again."""
ADDED_BYTES = 16 << 20
"""So much of the float32 gradient of the head's weight is added to at once."""


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, scale: float) -> torch.Tensor:
    """``logits`` [L, V], ``labels`` [L]; the sum over the labels, in float32, times ``scale``."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") * scale


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    scale: float,
    *more: torch.Tensor,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`plain_loss` of ``hidden @ weight.T``: ``hidden`` [L, W], ``weight`` [V, W].

    ``more`` are further factors, [L, R] and [V, R] in turn, whose products are added: an adapter on the head. Products
    are made in the type of ``hidden``, as autocast would. ``into`` [V, W] float32: the weight's gradient is added to it
    at once and autograd is given none; the backward pass has to follow, with a gradient of one.
    """
    factors = (hidden, weight, *more)
    if torch.is_grad_enabled() and any(factor.requires_grad for factor in factors):
        loss: torch.Tensor = HeadLoss.apply(labels, scale, into, *factors)  # type: ignore[no-untyped-call]
        return loss
    losses = [
        losses_and_grad_(products_of(*piece), labels[part]).sum()
        for part, piece in pieces_of([factor.to(hidden.dtype) for factor in factors])
    ]
    return torch.stack(losses).sum() * scale


Factors = Sequence[torch.Tensor]
"""[L, W], [V, W], [L, R], [V, R], ...: the logits are the sum of the products of two and two."""


def pieces_of(factors: Factors) -> Iterator[tuple[slice, Factors]]:
    """C labels at a time: which they are, and the factors of their logits."""
    size = piece_length(factors[1])
    for start in range(0, max(1, len(factors[0])), size):
        part = slice(start, start + size)
        yield part, [right if number % 2 else right[part] for number, right in enumerate(factors)]


def piece_length(weight: torch.Tensor) -> int:
    """C: how many labels' logits are held at once, in the type of the ``weight`` [V, W]."""
    return max(16, PIECE_BYTES // (weight.itemsize * len(weight)))


def logits_of(*factors: torch.Tensor) -> torch.Tensor:
    """[C, V] float32."""
    return products_of(*factors).float()


def products_of(*factors: torch.Tensor) -> torch.Tensor:
    """The logits [C, V] in the type of the factors."""
    logits = factors[0] @ factors[1].T
    for left, right in zip(factors[2::2], factors[3::2], strict=True):
        logits.addmm_(left, right.T)
    return logits


class HeadLoss(torch.autograd.Function):
    """The head's products and the cross-entropy in one, with the gradients made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, labels: torch.Tensor, scale: float, into: torch.Tensor | None, *factors: torch.Tensor
    ) -> torch.Tensor:
        cast = [factor.to(factors[0].dtype) for factor in factors]
        grads = room_for_grads(cast, ctx.needs_input_grad[3:], into)
        total = torch.zeros((), dtype=torch.float32, device=labels.device)
        for part, piece in pieces_of(cast):
            logits = products_of(*piece)
            total += losses_and_grad_(logits, labels[part], scale).sum()
            add_grads(grads, part, logits, piece)
            del logits  # or they stood beside the next piece's
        ctx.in_place = into is not None
        ctx.save_for_backward(*(None if grad is into else grad for grad in grads))
        ctx.dtypes = [factor.dtype for factor in factors]
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = ctx.saved_tensors
        # The trainer's own case: no pass over the largest gradient of the model to multiply it by one.
        if (ctx.in_place or grad_output.device.type == "cpu") and float(grad_output) == 1.0:
            return None, None, None, *in_types(grads, ctx.dtypes)
        if ctx.in_place:
            raise RuntimeError(
                f"the gradient at this loss is {float(grad_output)}, but that of the head was added to its weight's "
                "already, for a gradient of one: call backward() on the loss itself, and scale it by `scale`"
            )
        grads = [None if grad is None else grad.mul_(grad_output.to(grad.dtype)) for grad in grads]
        return None, None, None, *in_types(grads, ctx.dtypes)


Grads = list[torch.Tensor | None]


def room_for_grads(factors: Factors, needed: Sequence[bool], into: torch.Tensor | None) -> Grads:
    """Where the gradients go: those of [L, ...] are written once, those of [V, ...] are sums, and in float32.

    ``into`` is where the weight's goes, if that is there already.
    """
    room: Grads = []
    for number, (factor, need) in enumerate(zip(factors, needed, strict=True)):
        if not need:
            room.append(None)
        elif number % 2:
            room.append(torch.zeros_like(factor, dtype=torch.float32) if into is None or number > 1 else into)
        else:
            room.append(torch.empty_like(factor))
    return room


def add_grads(grads: Grads, part: slice, grad: torch.Tensor, piece: Factors) -> None:
    """Of a piece's gradient at its logits [C, V] the gradients at its factors."""
    for number in range(0, len(piece), 2):
        left, right = piece[number : number + 2]
        left_grad, right_grad = grads[number : number + 2]
        if left_grad is not None:
            torch.mm(grad, right, out=left_grad[part])
        if right_grad is not None:
            add_product_(right_grad, grad, left)


def add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total`` [V, W] ``+= left.T @ right`` for [C, V] and [C, W], some rows of it at a time.

    The product in half precision, and its copy in float32 that PyTorch adds, would each be as large as the weight.
    """
    size = max(1, ADDED_BYTES // (4 * right.shape[1]))
    for start in range(0, len(total), size):
        total[start : start + size] += left[:, start : start + size].T @ right


def in_types(grads: Sequence[torch.Tensor | None], dtypes: Sequence[torch.dtype]) -> Grads:
    """The gradients in the types of what they are of."""
    return [None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]


def losses_and_grad_(logits: torch.Tensor, labels: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Turns ``logits`` [C, V] of any type into the gradient of their cross-entropy times ``scale``, in place.

    Gives the cross-entropy of each of the C labels. All of it is computed in float32.
    """
    size = len(logits) if logits.is_cuda else max(1, BLOCK_BYTES // (4 * logits.shape[1]))
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    for start in range(0, len(logits), size or 1):
        rows = slice(start, start + size)
        block = logits[rows].float()
        losses[rows] = softmax_grad_(block, labels[rows])
        logits[rows] = block.mul_(scale)
    return losses


def softmax_grad_(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Turns float32 ``logits`` [C, V] into the gradient of their cross-entropy, softmax minus one-hot, in place.

    Gives the cross-entropy of each of the C labels.
    """
    rows = torch.arange(len(labels), device=labels.device)
    wanted, largest = logits[rows, labels], logits.amax(dim=1)
    # One pass of PyTorch's kernel, in place, instead of five: what took a tenth of a step on a CPU.
    torch.softmax(logits, dim=1, out=logits)
    # The largest probability is at least 1 / V, whose logarithm is exact where that of the label's is minus infinity.
    normalizer = largest - logits.amax(dim=1).log()  # [C]
    logits[rows, labels] -= 1.0
    return normalizer - wanted
