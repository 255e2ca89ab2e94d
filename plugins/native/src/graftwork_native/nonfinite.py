"""A loss or a gradient that is no number: which rows it comes from, and what is left to do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import get_total_norm

from graftwork_native.checkpoint import own_gpus
from graftwork_native.forward import evaluating
from graftwork_native.sharding import own_part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from graftwork.data.batch import Row
    from graftwork_native.objective import Objective

MOST_IN_A_ROW = 10
"""So many batches are skipped one after the other, and no more. Bad rows are rare: where one batch in ten has one, ten
in a row come about once in 10^10 steps. A step that broke the weights, on the other hand, makes every batch bad."""

NAMED = 20
"""Rows that a message names."""


def explain(
    step: int,
    losses: Sequence[float],
    norm: float,
    rows: Sequence[Row],
    objective: Objective,
    model: nn.Module,
    clear: Callable[[], None] | None,
) -> str:
    """What happened in a step and where: the rows whose own loss or gradient is no number, and all rows of the step.

    ``clear`` empties the gradients; None where a row by itself cannot be gone back through.
    """
    said = f"step {step}: the loss is {sum(losses)}, the norm of its gradient {norm}"
    every = list(dict.fromkeys(where for row in rows for where in row.wheres))
    culprits = list(dict.fromkeys(find_culprits(losses, rows, objective, model)))
    of_what = ""
    if not culprits and clear is not None and not broken_weight(model):
        culprits = list(dict.fromkeys(find_by_gradient(rows, objective, model, clear)))
        of_what = "the gradient of "
    if weight := broken_weight(model):
        said += f"; {weight} is not finite any more, so an earlier step broke the weights"
    elif len(culprits) == len(every) > 1:
        said += "; so it is in every row, and the steps before are to blame rather than the data"
    elif culprits:
        said += f"; it comes from {of_what}{listed(culprits)}"
    return f"{said}. The rows of the step: {listed(every)}"


def find_culprits(losses: Sequence[float], rows: Sequence[Row], objective: Objective, model: nn.Module) -> list[str]:
    """The places of the samples to blame; none where every loss is a number and only the gradient is not."""
    with evaluating(model):
        found = [where for row, loss in zip(rows, losses, strict=True) for where in broken(row, loss, objective)]
    objective.sums()  # of these trials nobody wants to know
    return found


def find_by_gradient(
    rows: Sequence[Row], objective: Objective, model: nn.Module, clear: Callable[[], None]
) -> list[str]:
    """The places of the samples whose own gradient is not finite, each with the weight that it has in the step.

    Leaves no gradient behind, and draws from copies of the generators of random numbers. A row that takes more memory
    than there is (a step's gradients are freed by now) ends the search: it is a message that is wanted.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scale = 1.0 / max(1, sum(objective.weight(row) for row in rows))

    def has_bad_gradient(row: Row) -> bool:
        if not len(row.labels):
            return False
        clear()
        objective.loss(row, scale).backward()
        own = [parameter.grad for parameter in trained if parameter.grad is not None]
        return bool(own) and not math.isfinite(float(get_total_norm(own)))

    found: list[str] = []
    with torch.random.fork_rng(own_gpus(model)):
        try:
            for row in rows:
                if has_bad_gradient(row):
                    alone = [where for single in singles(row) if has_bad_gradient(single) for where in single.wheres]
                    found += alone or row.wheres
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            found = []
        finally:
            clear()
            objective.sums()
    return found


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether there was too little memory. For that of the CPU PyTorch has no class of errors, only words."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)


def broken(row: Row, loss: float, objective: Objective) -> tuple[str, ...]:
    """The places of the row's samples that have no finite loss each alone; of all where no single one is to blame."""
    if math.isfinite(loss):
        return ()
    found: list[str] = []
    for single in singles(row):
        if len(single.labels) and not math.isfinite(float(objective.loss(single, 1.0))):
            found += single.wheres
    return tuple(found) or row.wheres


def singles(row: Row) -> list[Row]:
    """Each segment of a row as a row of its own."""
    found, start = [], 0
    for number, length in enumerate(row.segment_lengths):
        end = start + length
        within = (row.label_positions >= start) & (row.label_positions < end)
        found.append(
            replace(
                row,
                input_ids=row.input_ids[:, start:end],
                position_ids=row.position_ids[:, start:end],
                segment_lengths=(length,),
                label_positions=row.label_positions[within] - start,
                labels=row.labels[within],
                wheres=row.wheres[number : number + 1],
                pairs=row.pairs and row.pairs[number : number + 1],
                pair_labels=row.pair_labels and row.pair_labels[number : number + 1],
            )
        )
        start = end
    return found


def broken_weight(model: nn.Module) -> str | None:
    """The first trained weight that has a NaN or an infinity in it."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # The smallest and the largest are NaN where any value is, and no array of answers is made.
            own = own_part(parameter.detach())
            least, most = torch.aminmax(own) if own.numel() else (0.0, 0.0)
            if not (math.isfinite(float(least)) and math.isfinite(float(most))):
                return name
    return None


def listed(wheres: Sequence[str]) -> str:
    """The first :data:`NAMED` places."""
    more = f" and {len(wheres) - NAMED} more" if len(wheres) > NAMED else ""
    return ", ".join(wheres[:NAMED]) + more
