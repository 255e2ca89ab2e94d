"""Which types the weights and the products have."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import nn

from graftwork.builders.dtype import bfloat16_is_fast
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


def require_products(model: nn.Module, products: torch.dtype | None) -> None:
    """Raises :class:`UsageError` where a float32 master would be multiplied with what frozen layers in half precision
    give it, which only autocast does. A LoRA's own matrices take what they get in float32 themselves.
    """
    halves = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    halves &= {torch.bfloat16, torch.float16}
    for name, parameter in model.named_parameters():
        whole = "modules_to_save" in name or name.endswith(".bias")
        if products is None and halves and whole and parameter.requires_grad and parameter.dtype == torch.float32:
            raise UsageError(
                f"training.mixed_precision_dtype: none does not go with {name}, which is trained whole and in float32 "
                f"beside frozen weights in {str(halves.pop()).removeprefix('torch.')}; set it to bf16, or "
                "model.torch_dtype to float32"
            )


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
