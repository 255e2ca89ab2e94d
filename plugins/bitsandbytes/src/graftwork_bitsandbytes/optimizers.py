"""Optimizers with 8 bits a value of state, or with state in pages that move between a GPU and the host.

8-bit states are quantized in blocks (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"); tensors of
fewer than 4,096 values keep 32 bits. They run on CPUs too; pages are a matter of GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitsandbytes import optim

from graftwork.errors import UsageError

if TYPE_CHECKING:
    import torch

    from graftwork.config import TrainingParams

_CLASSES = {
    "adamw_8bit": optim.AdamW8bit,
    "paged_adamw_8bit": optim.PagedAdamW8bit,
    "paged_adamw_32bit": optim.PagedAdamW32bit,
    "lion_32bit": optim.Lion32bit,
    "lion_8bit": optim.Lion8bit,
    "paged_lion_32bit": optim.PagedLion32bit,
    "paged_lion_8bit": optim.PagedLion8bit,
}


def optimizer(
    name: str, groups: list[dict[str, Any]], learning_rate: float, training: TrainingParams
) -> torch.optim.Optimizer:
    """The optimizer of that name, with the fields of ``training`` that it has.

    Raises :class:`UsageError` for a paged one on parameters that are not on a GPU: bitsandbytes would go on without
    pages.
    """
    if name.startswith("paged_"):
        _require_gpu(name, groups)
    options: dict[str, Any] = {"lr": learning_rate, "betas": (training.adam_beta1, training.adam_beta2)}
    if "adamw" in name:
        options["eps"] = training.adam_epsilon
    made: torch.optim.Optimizer = _CLASSES[name](groups, **options)
    return made


def _require_gpu(name: str, groups: list[dict[str, Any]]) -> None:
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    if "cpu" in devices:
        raise UsageError(
            f"training.optimizer {name!r}: its pages move between a GPU's memory and the host's, and the model is on "
            f"the CPU: use {name.removeprefix('paged_').replace('adamw_32bit', 'adamw')}"
        )
