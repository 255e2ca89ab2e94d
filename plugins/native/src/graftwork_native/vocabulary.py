"""The gradients of the weights that have a row for each token, embedding and head: made once, and in place.

Each is as large as its weight, the largest of a small model. Left to autograd there are several at a time: the head's,
the embedding's with nothing but zeros at the tokens that no row has, and what the rows before gave. Here they stay from
step to step, zeroed instead of freed: the head's loss adds to its own, and the embedding adds the rows of the tokens
that were there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from graftwork_native.forward import base_of, parts_of
from graftwork_native.head import linear_of

if TYPE_CHECKING:
    from graftwork.config import RunConfig
    from graftwork_native.forward import Forward


def keeps_gradients(config: RunConfig) -> bool:
    """Whether they may stay in a run of one process; between several, autograd has to see each of them.

    A step within the backward pass is there to free them, and compiled code knows no gradient of some rows only.
    """
    return not (config.training.optimizer_in_backward or config.training.compile or config.model.compile)


def kept_gradients(forward: Forward) -> tuple[nn.Parameter, ...]:
    """The trained weights of embedding and head, whose gradients are to stay; :func:`clear_gradients` makes these.

    Only float32 masters: in half precision a sum over many rows would lose the small ones.
    """
    embedding: Any = base_of(forward.model).get_input_embeddings()
    weights: list[Any] = []
    if isinstance(embedding, nn.Embedding) and not embedding.scale_grad_by_freq and is_master(embedding.weight):
        embedding.sparse = True
        weights.append(embedding.weight)
    if forward.fused_head and is_master(head := linear_of(parts_of(forward.model)[1]).weight):
        weights.append(head)
    return tuple(dict.fromkeys(weights))


def is_master(weight: Any) -> bool:
    """Whether it is trained, and in float32."""
    return isinstance(weight, nn.Parameter) and weight.requires_grad and weight.dtype == torch.float32


def clear_gradients(optimizer: torch.optim.Optimizer, kept: tuple[nn.Parameter, ...]) -> None:
    """Zeroes the gradients of ``kept``, makes those that are not there, and frees all others."""
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad.zero_() for weight in kept]
    optimizer.zero_grad(set_to_none=True)
    for weight, gradient in zip(kept, gradients, strict=True):
        weight.grad = gradient
