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
"""Size of one piece's float32 logits."""


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, scale: float) -> torch.Tensor:
    """``logits`` [L, V], ``labels`` [L]; the sum over the labels, in float32, times ``scale``."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") * scale


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, scale: float, *more: torch.Tensor
) -> torch.Tensor:
    """:func:`plain_loss` of ``hidden @ weight.T``: ``hidden`` [L, W], ``weight`` [V, W].

    ``more`` are further factors, [L, R] and [V, R] in turn, whose products are added: an adapter on the head. Products
    are made in the type of ``hidden``, as autocast would.
    """
    factors = (hidden, weight, *more)
    if torch.is_grad_enabled() and any(factor.requires_grad for factor in factors):
        loss: torch.Tensor = HeadLoss.apply(labels, scale, *factors)  # type: ignore[no-untyped-call]
        return loss
    losses = [
        F.cross_entropy(logits_of(*piece), labels[part], reduction="sum")
        for part, piece in pieces_of([factor.to(hidden.dtype) for factor in factors])
    ]
    return torch.stack(losses).sum() * scale


Factors = Sequence[torch.Tensor]
"""[L, W], [V, W], [L, R], [V, R], ...: the logits are the sum of the products of two and two."""


def pieces_of(factors: Factors) -> Iterator[tuple[slice, Factors]]:
    """C labels at a time: which they are, and the factors of their logits."""
    size = piece_length(len(factors[1]))
    for start in range(0, max(1, len(factors[0])), size):
        part = slice(start, start + size)
        yield part, [right if number % 2 else right[part] for number, right in enumerate(factors)]


def piece_length(vocab_size: int) -> int:
    """C: how many labels' logits are held at once."""
    return max(16, PIECE_BYTES // (4 * vocab_size))


def logits_of(*factors: torch.Tensor) -> torch.Tensor:
    """[C, V] float32."""
    logits = factors[0] @ factors[1].T
    for left, right in zip(factors[2::2], factors[3::2], strict=True):
        logits.addmm_(left, right.T)
    return logits.float()


class HeadLoss(torch.autograd.Function):
    """The head's products and the cross-entropy in one, with the gradients made on the way forward."""

    @staticmethod
    def forward(ctx: Any, labels: torch.Tensor, scale: float, *factors: torch.Tensor) -> torch.Tensor:
        cast = [factor.to(factors[0].dtype) for factor in factors]
        grads = room_for_grads(cast, ctx.needs_input_grad[2:])
        total = torch.zeros((), dtype=torch.float32, device=labels.device)
        for part, piece in pieces_of(cast):
            logits = logits_of(*piece)
            total += softmax_grad_(logits, labels[part]).sum()
            add_grads(grads, part, logits.mul_(scale).to(cast[0].dtype), piece)
        ctx.save_for_backward(*grads)
        ctx.dtypes = [factor.dtype for factor in factors]
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = ctx.saved_tensors
        # The trainer's own case: no pass over the largest gradient of the model to multiply it by one.
        if grad_output.device.type != "cpu" or float(grad_output) != 1.0:
            grads = [None if grad is None else grad.mul_(grad_output.to(grad.dtype)) for grad in grads]
        return None, None, *in_types(grads, ctx.dtypes)


Grads = list[torch.Tensor | None]


def room_for_grads(factors: Factors, needed: Sequence[bool]) -> Grads:
    """Where the gradients go: those of [L, ...] are written once, those of [V, ...] are sums, and in float32."""
    return [
        None if not need else torch.zeros_like(factor, dtype=torch.float32) if number % 2 else torch.empty_like(factor)
        for number, (factor, need) in enumerate(zip(factors, needed, strict=True))
    ]


def add_grads(grads: Grads, part: slice, grad: torch.Tensor, piece: Factors) -> None:
    """Of a piece's gradient at its logits [C, V] the gradients at its factors."""
    for number in range(0, len(piece), 2):
        left, right = piece[number : number + 2]
        left_grad, right_grad = grads[number : number + 2]
        if left_grad is not None:
            torch.mm(grad, right, out=left_grad[part])
        if right_grad is not None:
            right_grad += grad.T @ left


def in_types(grads: Sequence[torch.Tensor | None], dtypes: Sequence[torch.dtype]) -> Grads:
    """The gradients in the types of what they are of."""
    return [None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]


def softmax_grad_(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Turns ``logits`` [C, V] into the gradient of their cross-entropy, softmax minus one-hot, in place.

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
