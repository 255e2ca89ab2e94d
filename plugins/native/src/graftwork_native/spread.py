"""One objective over all processes of a run: which rows are whose, and whose gradients meet where.

Each process has the whole model (``DistributedDataParallel``) or a part of it (``fully_shard``, FSDP2). Both act on
what goes through their ``forward``; the decoder and the head's weight are used apart here, so the module that they wrap
is :class:`Whole`, whose ``forward`` runs whatever it is given. Gradients are summed, not averaged: the loss of a step
is divided by the labels of all processes already.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from graftwork_native.sharding import shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from graftwork.config import RunConfig
    from graftwork.data.batch import Row
    from graftwork_native.objective import Objective
    from graftwork_native.world import World


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

    def weight(self, row: Row) -> int:
        return self.objective.weight(row)

    def loss(self, row: Row, scale: float) -> torch.Tensor:
        """The objective's; a row of weight 0 leaves no trace in the metrics."""
        if self.wrapped is None:
            return self.objective.loss(row, scale)
        if scale == 0.0:
            self._keep_sums()
        loss: torch.Tensor = self.wrapped(self.objective.loss, row, scale)
        if scale == 0.0:
            self.objective.sums()
        return loss

    def _keep_sums(self) -> None:
        for name, value in self.objective.sums().items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def sums(self) -> dict[str, float]:
        """This process's."""
        self._keep_sums()
        kept, self._sums = self._sums, {}
        return kept

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function`` while the model is whole, in every process; for what goes not through the loss."""
        return function(*arguments) if self.wrapped is None else self.wrapped(function, *arguments)

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
        return Spread(objective, world)
    whole = Whole(model)
    if config.fsdp.shards:
        return Spread(objective, world, shard(whole, model, config, world))
    wrapped = DistributedDataParallel(
        whole,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=bool(config.training.ddp_find_unused_parameters),
    )
    wrapped.register_comm_hook(None, summed)
    return Spread(objective, world, wrapped)


def summed(_state: None, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """The sum of a ``GradBucket``'s gradients, where DDP by itself would make their mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    future: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future
