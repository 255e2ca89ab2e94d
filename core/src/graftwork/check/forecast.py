"""What a trainer says about the memory that a run will take: the question and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from graftwork.config import RunConfig
    from graftwork.data.batch import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastRequest:
    """What ``TrainerSpec.forecast`` gets.

    ``rows`` are the forward passes of the run as far as they are known, of which the largest decides; there is at
    least one. ``params`` is the trainer's own option block, validated.
    """

    config: RunConfig
    params: BaseModel | None
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The memory at the moment when it is largest, in bytes by part; :attr:`total` is their sum.

    What is counted is what a run measures: on a CPU the resident memory beyond what imports, tokenizer and data have
    taken before the model is built, on CUDA what PyTorch's allocator has handed out. ``tokens`` is the size of the
    forward pass that decides. ``checkpoint_bytes`` and ``final_bytes`` lie on the disk.
    """

    device: str
    parts: Mapping[str, int]
    tokens: int
    checkpoint_bytes: int
    final_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())
