"""Which types the weights and the products have."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import nn

from graftwork.errors import UsageError

if TYPE_CHECKING:
    from graftwork.config import RunConfig

logger = logging.getLogger(__name__)


def autocast_dtype(config: RunConfig, device: torch.device) -> torch.dtype | None:
    """The type of the products: bfloat16, or None for the weights' own. ``auto`` takes what is fast here."""
    match config.training.mixed_precision_dtype:
        case "bf16":
            return torch.bfloat16
        case "auto":
            return torch.bfloat16 if bfloat16_is_fast(device) else None
        case "none":
            return None
    raise UsageError(
        f"training.mixed_precision_dtype: {config.training.mixed_precision_dtype} needs loss scaling, which the native "
        "trainers do not have; use bf16, auto or none"
    )


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def use_float32_masters(model: nn.Module) -> None:
    """Trained parameters in float32: an update smaller than 1/256 of a weight is lost in bfloat16."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def return_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Frozen parameters in the type that they were in before a checkpoint brought them back in float32."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)


def describe(model: nn.Module, dtype: torch.dtype | None) -> str:
    """``float32 weights, bfloat16 products``."""
    kinds = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    products = str(dtype).removeprefix("torch.") if dtype else "the same"
    return f"{' and '.join(kinds)} weights, {products} products"
