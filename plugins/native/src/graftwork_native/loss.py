"""The loss of a row: cross-entropy, summed over the labels and multiplied by a scale.

Two forms of the same number. :func:`plain_loss` is transformers' and PyTorch's own, and the reference in the
tests. :class:`HeadLoss` never holds all logits: it goes through the labels in pieces, makes the piece's logits,
its part of the loss and its gradients, and lets the logits go (as in Wijmans et al. 2024, "Cut Your Losses in
Large-Vocabulary Language Models", and Liger's fused linear cross-entropy, in plain PyTorch).

Shapes: L labels, W hidden width, V vocabulary, C labels in one piece.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

PIECE_BYTES = 64 << 20
"""Size of one piece's float32 logits."""


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, scale: float) -> torch.Tensor:
    """``logits`` [L, V], ``labels`` [L]; the sum over the labels, in float32, times ``scale``."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") * scale


def head_loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, scale: float) -> torch.Tensor:
    """:func:`plain_loss` of ``hidden @ weight.T``: ``hidden`` [L, W], ``weight`` [V, W].

    The product is made in the type of ``hidden``, as autocast would.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: torch.Tensor = HeadLoss.apply(hidden, weight, labels, scale)  # type: ignore[no-untyped-call]
        return loss
    cast = weight.to(hidden.dtype)
    pieces = (logits_of(piece, cast) for piece in hidden.split(piece_length(len(weight))))
    losses = [
        F.cross_entropy(logits, target, reduction="sum")
        for logits, target in zip(pieces, labels.split(piece_length(len(weight))), strict=True)
    ]
    return torch.stack(losses).sum() * scale


def piece_length(vocab_size: int) -> int:
    """C: how many labels' logits are held at once."""
    return max(16, PIECE_BYTES // (4 * vocab_size))


def logits_of(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[C, V] float32."""
    return (hidden @ weight.T).float()


class HeadLoss(torch.autograd.Function):
    """The head's product and the cross-entropy in one, with the gradients made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, scale: float
    ) -> torch.Tensor:
        cast = weight.to(hidden.dtype)  # [V, W]
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        start = 0
        for piece, target in zip(hidden.split(c := piece_length(len(weight))), labels.split(c), strict=True):
            logits = logits_of(piece, cast)
            total += softmax_grad_(logits, target).sum()
            grad = logits.mul_(scale).to(hidden.dtype)  # [C, V]
            if hidden_grad is not None:
                torch.mm(grad, cast, out=hidden_grad[start : start + len(piece)])
            if weight_grad is not None:
                weight_grad += grad.T @ piece
            start += len(piece)
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.weight_dtype = weight.dtype
        return total * scale

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        if grad_output.device.type == "cpu" and float(grad_output) == 1.0:
            # The trainer's own case: no pass over the largest gradient of the model to multiply it by one.
            return hidden_grad, None if weight_grad is None else weight_grad.to(ctx.weight_dtype), None, None
        if hidden_grad is not None:
            hidden_grad = hidden_grad * grad_output.to(hidden_grad.dtype)
        if weight_grad is not None:
            weight_grad = weight_grad.mul_(grad_output).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None


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
