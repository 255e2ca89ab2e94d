"""The head of a causal language model as a sum of products, of which the loss makes the logits piece by piece.

Shapes: L labels, W hidden width, V vocabulary, R rank of an adapter on the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft.tuners.lora import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import nn

if TYPE_CHECKING:
    import torch


def factors_of(head: nn.Module, states: torch.Tensor) -> list[torch.Tensor]:
    """Of the logits at ``states`` [L, W] what :func:`~graftwork_native.loss.logits_of` makes them of.

    The states and the head's weight [V, W]; of an adapter (Hu et al. 2021, LoRA) also ``s * drop(states) @ A.T``
    [L, R] and ``B`` [V, R]. What leads to these is left to autograd.
    """
    factors = [states, linear_of(head).weight]
    layer: Any = head
    for adapter in adapters_of(head):
        down, up = layer.lora_A[adapter], layer.lora_B[adapter]
        dropped = layer.lora_dropout[adapter](states.to(down.weight.dtype))
        factors += [down(dropped) * layer.scaling[adapter], up.weight]
    return factors


def linear_of(head: nn.Module) -> nn.Linear:
    """The layer within an adapter's wrapper; of one that is trained as a whole (``lora_modules_to_save``) the copy,
    unless the adapter is switched off.
    """
    inner: Any = head
    if isinstance(inner, ModulesToSaveWrapper):
        inner = inner.original_module if inner.disable_adapters else inner.modules_to_save[inner.active_adapters[0]]
    linear: nn.Linear = inner.base_layer if isinstance(inner, LoraLinear) else inner
    return linear


def adapters_of(head: nn.Module) -> list[str]:
    """The names of the LoRA adapters on the head that count now."""
    if not isinstance(head, LoraLinear) or head.disable_adapters or head.merged:
        return []
    return [name for name in head.active_adapters if name in head.lora_A]


def not_plain(head: nn.Module | None) -> str | None:
    """Why the logits are more than products of weights, or None where they are not."""
    if head is None:
        return "the model names no head"
    linear = linear_of(head)
    if type(linear) is not nn.Linear:
        return f"the head is {type(linear).__name__}"
    if linear.bias is not None:
        return "the head has a bias"
    if isinstance(head, LoraLinear):
        if type(head) is not LoraLinear or head.lora_variant:
            return "the adapter on the head is no plain LoRA"
        if any(up.bias is not None for up in head.lora_B.values()):
            return "the adapter on the head has a bias"
    return None
