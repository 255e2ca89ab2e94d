"""What a trainer minimises: rows in, a loss out. The loop knows no method, and a method no loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from graftwork.data.batch import Row
    from graftwork_native.forward import Forward


class Objective(Protocol):
    """A method of training. The loss of a step is the sum over its rows, divided by the sum of their weights."""

    def weight(self, row: Row) -> int:
        """How much the row counts: what its loss is a sum over."""
        ...

    def loss(self, row: Row, scale: float) -> torch.Tensor:
        """The row's sum, times ``scale``; a float32 scalar."""
        ...

    def sums(self) -> dict[str, float]:
        """Further metrics of the rows since this was last asked: each a sum, to be divided by their weights."""
        ...


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The next token, for documents and conversations: a sum over labels."""

    forward: Forward

    def weight(self, row: Row) -> int:
        return row.num_labels

    def loss(self, row: Row, scale: float) -> torch.Tensor:
        return self.forward.loss(row, scale)

    def sums(self) -> dict[str, float]:
        return {}
