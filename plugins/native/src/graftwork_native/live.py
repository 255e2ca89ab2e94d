"""Which tensors are alive while a computation runs on fake tensors.

The computation is the trainer's own code on tensors without memory (PyTorch's ``FakeTensorMode``): whatever it would
allocate and free is seen here in that order, temporaries and what autograd saves included, for any architecture.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Iterable

PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")


@dataclass(frozen=True, slots=True)
class Block:
    """The memory of one tensor: its number, its size in bytes, and what it was made for."""

    number: int
    size: int
    part: str


@dataclass(slots=True)
class Record:
    """Allocations (``+number``) and releases (``-number``) in their order, and the blocks by number."""

    blocks: dict[int, Block] = field(default_factory=dict)
    events: list[int] = field(default_factory=list)

    def peak(self) -> tuple[int, dict[str, int]]:
        """The most bytes alive at one moment, and what they were then, by part."""
        now = most = place = 0
        for index, event in enumerate(self.events):
            now += self._size(event)
            if now > most:
                most, place = now, index
        parts: dict[str, int] = {}
        for event in self.events[: place + 1]:
            block = self.blocks[abs(event)]
            parts[block.part] = parts.get(block.part, 0) + self._size(event)
        return most, {part: size for part, size in parts.items() if size}

    def _size(self, event: int) -> int:
        size = self.blocks[abs(event)].size
        return size if event > 0 else -size


class Live(TorchDispatchMode):
    """Within the block every new tensor is recorded, and its end. ``part`` is what is being made at the moment.

    ``vocabulary`` and ``weights`` (shapes) tell logits, and copies of weights in another type, from activations.
    ``kernel_bytes`` is what the first bfloat16 product of each shape leaves behind.
    """

    def __init__(self, vocabulary: int = 0, weights: Iterable[torch.Size] = (), kernel_bytes: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = Record()
        self.part = "activations"
        self.vocabulary = vocabulary
        self.weights = {*weights}
        self.kernel_bytes = kernel_bytes
        self.products: set[tuple[Any, ...]] = set()
        self._numbers: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two thirds of all calls, and none makes anything
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1  # a number is asked for, and a fake tensor has none
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [number for index in args[1] for number in taking_all(index)])
        result = func(*args, **(kwargs or {}))
        name = str(func)
        for leaf in tree_leaves(result):
            # A gradient of some rows only is made of two tensors that were counted
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                self.add(leaf, self._part_of(leaf, name))
        if self.kernel_bytes and name.startswith(PRODUCTS) and result.dtype is torch.bfloat16:
            self._keep_kernel((name, *(laid_out(leaf) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))))
        return result

    def _keep_kernel(self, product: tuple[Any, ...]) -> None:
        """The first product of a shape leaves something behind for good, in the midst of what is alive then."""
        if product not in self.products:
            self.products.add(product)
            self._new(self.kernel_bytes, "kernels")

    def add(self, tensor: torch.Tensor, part: str) -> None:
        """Counts a tensor's memory, unless it is counted already: views share it."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._numbers or not storage.nbytes():
            return
        self._numbers[storage._cdata] = self._new(storage.nbytes(), part)
        weakref.finalize(storage, self._end, storage._cdata)

    def _new(self, size: int, part: str) -> int:
        number = len(self.record.blocks) + 1
        self.record.blocks[number] = Block(number, size, part)
        self.record.events.append(number)
        return number

    def rename(self, tensors: Iterable[torch.Tensor | None], part: str) -> None:
        """Says of tensors that are alive what they turned out to be, for the time before as well."""
        for tensor in tensors:
            number = self._numbers.get(tensor.untyped_storage()._cdata) if tensor is not None else None
            if number is not None:
                block = self.record.blocks[number]
                self.record.blocks[number] = Block(number, block.size, part)

    def _end(self, key: int) -> None:
        self.record.events.append(-self._numbers.pop(key))

    def _part_of(self, tensor: torch.Tensor, name: str) -> str:
        if tensor.dim() and tensor.shape[-1] == self.vocabulary and tensor.shape not in self.weights:
            return "logits"
        if name == "aten._to_copy.default" and tensor.shape in self.weights:
            return "copies of weights"
        return self.part


def laid_out(operand: torch.Tensor) -> tuple[Any, ...]:
    """What a kernel is made for: the shape, and whether it lies transposed."""
    return *operand.shape, operand.stride(-1) == 1


def taking_all(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    """For a mask, of which nobody knows how much it takes, numbers that take everything: one for each dimension."""
    if index is None or index.dtype is not torch.bool:
        return [index]
    return [torch.empty(index.numel(), dtype=torch.long, device=index.device) for _ in index.shape]
