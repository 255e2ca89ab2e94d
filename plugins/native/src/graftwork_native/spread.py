"""One objective over all processes of a run: which rows are whose, and whose gradients meet where.

Each process has the whole model (``DistributedDataParallel``) or a part of it (``fully_shard``, FSDP2). Both act on
what goes through their ``forward``; the decoder and the head's weight are used apart here, so the module that they wrap
is :class:`Whole`, whose ``forward`` runs whatever it is given. Gradients have to be summed, not averaged: the loss of a
step is divided by the labels of all processes already.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from graftwork_native.sharding import shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from graftwork.config import RunConfig
    from graftwork.data.batch import Row
    from graftwork_native.objective import Objective
    from graftwork_native.world import World

logger = logging.getLogger(__name__)


class Whole(nn.Module):
    """The model and everything that is done with it, as one module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What ``call`` returns."""
        return call(*arguments)


@dataclass(slots=True)
class Spread:
    """An objective that keeps the processes in step: each asks for the loss of equally many rows.

    ``wrapped`` is None in a run of one process.
    """

    objective: Objective
    world: World
    wrapped: nn.Module | None = None
    _sums: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """``FSDP2 over 2 processes, in 3 pieces``."""
        if self.wrapped is None:
            return "one process"
        pieces = sum(isinstance(module, FSDPModule) for module in self.wrapped.modules())
        kind, cut = ("FSDP2", f", in {pieces} pieces") if pieces else ("DDP", "")
        return f"{kind} over {self.world.size} processes{cut}"

    def weight(self, row: Row) -> int:
        return self.objective.weight(row)

    def loss(self, row: Row, scale: float) -> torch.Tensor:
        """The objective's; a row of weight 0 leaves no trace in the metrics."""
        if self.wrapped is None:
            return self.objective.loss(row, scale)
        if scale == 0.0:
            self._keep_sums()
        factor = self._factor if torch.is_grad_enabled() else 1.0
        loss: torch.Tensor = self.wrapped(self.objective.loss, row, scale * factor)
        if scale == 0.0:
            self._keep_sums(counted=False)
        return loss

    @property
    def _factor(self) -> float:
        """DDP makes the mean of the processes' gradients: of losses that are as many times too large it is the sum."""
        return float(self.world.size) if isinstance(self.wrapped, DistributedDataParallel) else 1.0

    def of_all(self, losses: Sequence[float]) -> list[float]:
        """The losses of the rows of all processes, in the order of the rows, from each one's own in training."""
        return [loss / self._factor for loss in self.world.interleaved(losses)]

    def _keep_sums(self, *, counted: bool = True) -> None:
        for name, value in self.objective.sums().items():
            self._sums[name] = self._sums.get(name, 0.0) + value * counted

    def sums(self) -> dict[str, float]:
        """Those of all processes, which all have to ask."""
        self._keep_sums()
        kept, self._sums = self._sums, {}
        return dict(zip(kept, self.world.sum(list(kept.values())), strict=True)) if kept else {}

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function`` while the model is whole, in every process; for what goes not through the loss."""
        return function(*arguments) if self.wrapped is None else self.wrapped(function, *arguments)

    def rest(self) -> None:
        """Lets go of what was gathered: after an evaluation FSDP still holds it, for a way back that never comes."""
        for module in self.wrapped.modules() if self.wrapped is not None else ():
            if isinstance(module, FSDPModule):
                module.reshard()

    def share(self, rows: Iterable[Row]) -> Iterator[tuple[Row, float]]:
        """This process's rows of a step or an evaluation, each with 1.0.

        Where they do not come out even, those who have none left take part with a row that counts 0.0.
        """
        if self.wrapped is None:
            yield from ((row, 1.0) for row in rows)
            return
        for turn, last in turns(rows, self.world.size):
            if isinstance(self.wrapped, DistributedDataParallel):
                # The gradients of all rows meet once; FSDP's meet at each row, or they would be kept whole.
                self.wrapped.require_backward_grad_sync = last
            if self.world.rank < len(turn):
                yield turn[self.world.rank], 1.0
            else:
                yield min(turn, key=lambda row: row.num_tokens), 0.0


def turns(rows: Iterable[Row], size: int) -> Iterator[tuple[list[Row], bool]]:
    """``size`` rows at a time, one for each process, and whether they are the last."""
    turn: list[Row] = []
    for row in rows:
        if len(turn) == size:
            yield turn, False
            turn = []
        turn.append(row)
    if turn:
        yield turn, True


def spread(objective: Objective, model: nn.Module, config: RunConfig, world: World) -> Spread:
    """The objective over the world's processes. Where the model is cut, its parameters are other ones from here on."""
    if world.size == 1:
        if config.fsdp.shards:
            logger.warning("fsdp.enable_fsdp: one process holds all there is; start more with --nproc-per-node")
        return Spread(objective, world)
    whole = Whole(model)
    if config.fsdp.shards:
        return Spread(objective, world, shard(whole, model, config, world))
    frozen = [name for name, parameter in whole.named_parameters() if not parameter.requires_grad]
    constant = [name for name, _ in whole.named_buffers()]
    # Each process has read these from the same files; quantized ones could not even be sent.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(whole, [*frozen, *constant])
    wrapped = DistributedDataParallel(
        whole,
        gradient_as_bucket_view=True,
        find_unused_parameters=bool(config.training.ddp_find_unused_parameters),
    )
    return Spread(objective, world, wrapped)
