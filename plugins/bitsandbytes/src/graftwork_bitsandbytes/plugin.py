"""What the bitsandbytes plugin declares."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from graftwork import hookimpl
from graftwork.specs import OptimizerSpec, QuantizerSpec

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import nn

# On a CPU with AVX-512 bitsandbytes warns, whenever PEFT imports it, that it did not fetch compiled code from the Hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _params_4bit() -> type[BaseModel]:
    from graftwork_bitsandbytes.params import FourBitParams

    return FourBitParams


def _params_8bit() -> type[BaseModel]:
    from graftwork_bitsandbytes.params import EightBitParams

    return EightBitParams


def _config(params: Any) -> Any:
    from graftwork_bitsandbytes.quantize import config_of

    return config_of(params)


def _quantize(model: nn.Module, params: Any) -> Any:
    from graftwork_bitsandbytes.quantize import quantize

    return quantize(model, params)


@hookimpl
def graftwork_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="bnb_4bit",
            bits=(4,),
            devices=("cpu", "cuda"),
            params=_params_4bit,
            quantization_config=_config,
            quantize=_quantize,
            trainable=True,
        ),
        QuantizerSpec(
            name="bnb_8bit",
            bits=(8,),
            devices=("cpu", "cuda"),
            params=_params_8bit,
            quantization_config=_config,
            quantize=_quantize,
            trainable=True,
        ),
    ]


def _optimizer(name: str, groups: Any, learning_rate: float, training: Any) -> Any:
    from graftwork_bitsandbytes.optimizers import optimizer

    return optimizer(name, groups, learning_rate, training)


# By the names that transformers gives them in TrainingArguments.optim.
_OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw_8bit": ("adamw_bnb_8bit",),
    "paged_adamw_8bit": (),
    "paged_adamw_32bit": ("paged_adamw",),
    "lion_32bit": ("lion",),
    "lion_8bit": (),
    "paged_lion_32bit": ("paged_lion",),
    "paged_lion_8bit": (),
}


def _devices(name: str) -> tuple[str, ...]:
    """Pages move between a GPU's memory and the host's."""
    return ("cuda",) if name.startswith("paged_") else ()


@hookimpl
def graftwork_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec(name=name, aliases=aliases, build=partial(_optimizer, name), devices=_devices(name))
        for name, aliases in _OPTIMIZERS.items()
    ]
