"""The optimizers, as PyTorch has them, from the fields of ``training``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from graftwork.errors import UsageError

if TYPE_CHECKING:
    from graftwork.config import TrainingParams

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, weight_decay: float) -> Groups:
    """The trained parameters: matrices decay, biases and norms (fewer than two dimensions) do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError("model.freeze_layers: nothing is left to train; freeze less, or train an adapter (use_peft)")
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(groups: Groups, learning_rate: float, training: TrainingParams) -> torch.optim.Optimizer:
    """AdamW in PyTorch's fused form: one pass over each parameter."""
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )


def sgd(groups: Groups, learning_rate: float, training: TrainingParams) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    # PyTorch's fused form does not know parameters that are cut over processes.
    cut = any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])
    return torch.optim.SGD(groups, lr=learning_rate, momentum=training.sgd_momentum, fused=not cut)


def adafactor(groups: Groups, learning_rate: float, training: TrainingParams) -> torch.optim.Optimizer:
    """Adafactor: second moments as a row and a column, for a tenth of AdamW's state."""
    return torch.optim.Adafactor(groups, lr=learning_rate)
