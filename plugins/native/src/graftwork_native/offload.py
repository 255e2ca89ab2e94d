"""Activations that wait for the backward pass in the host's memory instead of the GPU's.

What autograd saves on the way forward is copied into pinned memory, and back when its turn comes. Both copies are put
on the current stream, so they are in order with the kernels and need no waiting of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import saved_tensors_hooks

from graftwork.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

SMALL_BYTES = 1 << 16
"""Smaller tensors stay: moving them costs more time than it saves memory."""


class Offloading(saved_tensors_hooks):
    """Within it, what is saved for the backward pass waits on the host; weights and small tensors stay.

    ``kinds`` are the types of devices that are unburdened. ``moved_bytes`` counts what was.
    """

    def __init__(self, model: nn.Module, kinds: tuple[str, ...] = ("cuda",)) -> None:
        self.kinds = kinds
        self.weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self.moved_bytes = 0
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | tuple[torch.device, torch.Tensor]:
        size = tensor.numel() * tensor.element_size()
        stays = tensor.device.type not in self.kinds or size < SMALL_BYTES
        if stays or tensor.untyped_storage().data_ptr() in self.weights:
            return tensor
        self.moved_bytes += size
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        return tensor.device, host.copy_(tensor, non_blocking=True)

    @staticmethod
    def _unpack(packed: torch.Tensor | tuple[torch.device, torch.Tensor]) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        device, host = packed
        return host.to(device, non_blocking=True)


def require_device(device: torch.device) -> None:
    """Raises :class:`UsageError` where there is no GPU to take the activations from."""
    if device.type == "cpu":
        raise UsageError(
            "training.activation_offloading: the model is on the CPU, and so are its activations already: remove it, "
            "or set enable_gradient_checkpointing, which makes them again instead of keeping them"
        )
