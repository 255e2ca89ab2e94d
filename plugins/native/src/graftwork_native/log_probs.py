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

from graftwork_native.loss import Factors, add_grads, in_types, losses_and_grad_, pieces_of, products_of, room_for_grads

KEPT_BYTES = 128 << 20
"""Of the pieces' gradients so much is kept from the way forward to the way back; the others are made again."""


def plain_log_probs(logits: torch.Tensor, labels: torch.Tensor, owners: torch.Tensor, answers: int) -> torch.Tensor:
    """``logits`` [L, V], ``labels`` [L], ``owners`` [L]: which answer a label belongs to. Gives [N] float32."""
    each = -F.cross_entropy(logits.float(), labels, reduction="none")  # [L]
    return torch.zeros(answers, device=logits.device).index_add(0, owners, each)


def head_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    owners: torch.Tensor,
    answers: int,
    *more: torch.Tensor,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`plain_log_probs` of ``hidden @ weight.T``: ``hidden`` [L, W], ``weight`` [V, W], and ``more`` and ``into``
    as in :func:`~graftwork_native.loss.head_loss`, but that ``into`` is added to on the way back, for any gradient.
    """
    factors = (hidden, weight, *more)
    learns = torch.is_grad_enabled() and any(factor.requires_grad for factor in factors)
    sums: torch.Tensor = HeadLogProbs.apply(labels, owners, answers, into if learns else None, learns, *factors)  # type: ignore[no-untyped-call]
    return sums


class HeadLogProbs(torch.autograd.Function):
    """The head's products and the log-probabilities in one."""

    @staticmethod
    def forward(
        ctx: Any,
        labels: torch.Tensor,
        owners: torch.Tensor,
        answers: int,
        into: torch.Tensor | None,
        learns: bool,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        dtype = factors[0].dtype
        room = KEPT_BYTES if learns else -1
        sums = torch.zeros(answers, dtype=torch.float32, device=labels.device)
        ctx.kept = {}
        for part, piece in pieces_of([factor.to(dtype) for factor in factors]):
            logits = products_of(*piece)  # [C, V]
            # The same kernels with and without gradients: model and reference then agree to the bit.
            sums.index_add_(0, owners[part], -losses_and_grad_(logits, labels[part]))
            room -= logits.numel() * dtype.itemsize
            if room >= 0:
                ctx.kept[part.start] = logits
            del logits  # or they stood beside the next piece's
        ctx.into = into
        ctx.save_for_backward(labels, owners, *factors)
        return sums

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        labels, owners, *factors = ctx.saved_tensors
        cast = [factor.to(factors[0].dtype) for factor in factors]
        grads = room_for_grads(cast, ctx.needs_input_grad[5:], ctx.into)
        scales = -grad_output[owners].to(cast[0].dtype)[:, None]  # [L, 1]
        for part, piece in pieces_of(cast):
            kept = ctx.kept.pop(part.start, None)
            grad = piece_grad(piece, labels[part]) if kept is None else kept
            add_grads(grads, part, grad.mul_(scales[part]), piece)
            del grad, kept
        grads = [None if grad is ctx.into else grad for grad in grads]
        return None, None, None, None, None, *in_types(grads, [factor.dtype for factor in factors])


def piece_grad(piece: Factors, labels: torch.Tensor) -> torch.Tensor:
    """Softmax minus one-hot, [C, V]."""
    logits = products_of(*piece)
    losses_and_grad_(logits, labels)
    return logits
