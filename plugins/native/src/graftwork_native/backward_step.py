"""The optimizer's step inside the backward pass: a gradient lives only until its own weight is stepped.

The gradients are then never all there at once, which saves what they take: as much as the weights. Each weight gets
the step that it would get after the backward pass, as long as nothing is asked of all gradients together (clipping,
accumulation, the sum over several processes): to the bit, but for a weight that embedding and head share, whose
gradient is otherwise summed in another order (:mod:`graftwork_native.vocabulary`).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from graftwork.errors import RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from graftwork.data.batch import Row


def require_one_process(processes: int) -> None:
    """Raises :class:`UsageError` where there are several."""
    if processes > 1:
        raise UsageError(
            "training.optimizer_in_backward: with several processes a weight is stepped by the sum of their gradients, "
            "which is made after the backward pass: remove it, or train in one process"
        )


class BackwardStep:
    """Hooks that step each parameter of ``optimizer`` when its gradient is complete, and free the gradient."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.rows: Sequence[Row] = ()
        self._norms: list[float] = []
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(self._step, index))

    def norm(self) -> float:
        """The norm of the whole gradient since this was last asked, in float64 from the norms of its parts."""
        norms, self._norms = self._norms, []
        return math.hypot(*norms)

    def _step(self, index: int, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        norm = float(torch.linalg.vector_norm(parameter.grad))
        if not math.isfinite(norm):
            raise RunError(self._broken(norm))
        self._norms.append(norm)
        self._step_alone(self.optimizer.param_groups[index], parameter)
        parameter.grad = None

    def _step_alone(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        """One group with one parameter for the time of the step: without it each step would look at all others."""
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**group, "params": [parameter]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups

    def _broken(self, norm: float) -> str:
        wheres = ", ".join(where for row in self.rows for where in row.wheres)
        return (
            f"a gradient's norm is {norm} after {len(self._norms)} weights of the step were changed already "
            f"(training.optimizer_in_backward). The rows of the step: {wheres}. Go on from the last checkpoint with "
            "--resume, without these rows or with a lower training.learning_rate"
        )
