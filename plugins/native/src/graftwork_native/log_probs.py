"""The log-probabilities of answers: of each, the sum over its labels.

Two forms of the same number. :func:`plain_log_probs` is PyTorch's own, and the reference in the tests.
:class:`HeadLogProbs` never holds all logits: it goes through the labels in pieces on the way forward, and again on the
way back, when it is known how much each answer counts. The gradient of log softmax(z)[y] is one-hot(y) - softmax(z).

Shapes: L labels, W hidden width, V vocabulary, C labels in one piece, N answers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from graftwork_native.loss import logits_of, piece_length, softmax_grad_

KEPT_BYTES = 128 << 20
"""Of the pieces' gradients so much is kept from the way forward to the way back; the others are made again."""


def plain_log_probs(logits: torch.Tensor, labels: torch.Tensor, owners: torch.Tensor, answers: int) -> torch.Tensor:
    """``logits`` [L, V], ``labels`` [L], ``owners`` [L]: which answer a label belongs to. Gives [N] float32."""
    each = -F.cross_entropy(logits.float(), labels, reduction="none")  # [L]
    return torch.zeros(answers, device=logits.device).index_add(0, owners, each)


def head_log_probs(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, owners: torch.Tensor, answers: int
) -> torch.Tensor:
    """:func:`plain_log_probs` of ``hidden @ weight.T``: ``hidden`` [L, W], ``weight`` [V, W].

    The product is made in the type of ``hidden``, as autocast would.
    """
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    arguments = (hidden, weight, labels, owners, answers, learns)
    sums: torch.Tensor = HeadLogProbs.apply(*arguments)  # type: ignore[no-untyped-call]
    return sums


class HeadLogProbs(torch.autograd.Function):
    """The head's product and the log-probabilities in one."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        owners: torch.Tensor,
        answers: int,
        learns: bool,
    ) -> torch.Tensor:
        cast = weight.to(hidden.dtype)  # [V, W]
        room = KEPT_BYTES if learns else -1
        sums = torch.zeros(answers, dtype=torch.float32, device=hidden.device)
        ctx.kept = {}
        size = piece_length(len(weight))
        pieces = zip(hidden.split(size), labels.split(size), owners.split(size), strict=True)
        for number, (piece, target, owner) in enumerate(pieces):
            logits = logits_of(piece, cast)  # [C, V]
            # The same kernels with and without gradients: model and reference then agree to the bit.
            sums.index_add_(0, owner, -softmax_grad_(logits, target))
            room -= logits.numel() * hidden.element_size()
            if room >= 0:
                ctx.kept[number] = logits.to(hidden.dtype)
        ctx.save_for_backward(hidden, weight, labels, owners)
        return sums

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, labels, owners = ctx.saved_tensors
        cast = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        factors = -grad_output[owners].to(hidden.dtype)[:, None]  # [L, 1]
        start, size = 0, piece_length(len(weight))
        for number, piece in enumerate(hidden.split(size)):
            end = start + len(piece)
            kept = ctx.kept.pop(number, None)
            grad = piece_grad(piece, cast, labels[start:end]) if kept is None else kept
            grad.mul_(factors[start:end])  # [C, V]
            if hidden_grad is not None:
                torch.mm(grad, cast, out=hidden_grad[start:end])
            if weight_grad is not None:
                weight_grad += grad.T @ piece
            start = end
        return hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype), None, None, None, None


def piece_grad(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax minus one-hot, [C, V]."""
    logits = logits_of(hidden, weight)
    softmax_grad_(logits, labels)
    return logits.to(hidden.dtype)
