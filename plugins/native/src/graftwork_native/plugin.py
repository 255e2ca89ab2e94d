"""Entry module of graftwork's own trainers: declares them and their optimizers, imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork import hookimpl
from graftwork.specs import OptimizerSpec, TrainerSpec

if TYPE_CHECKING:
    from pydantic import BaseModel

    from graftwork.check.forecast import Forecast, ForecastRequest
    from graftwork.training import Trainer, TrainRequest


def _params() -> type[BaseModel]:
    from graftwork_native.params import NativeParams

    return NativeParams


def _dpo_params() -> type[BaseModel]:
    from graftwork_native.params import DpoParams

    return DpoParams


def _build(request: TrainRequest) -> Trainer:
    from graftwork_native.trainer import build

    return build(request)


def _forecast(request: ForecastRequest) -> Forecast:
    from graftwork_native.forecast import forecast

    return forecast(request)


@hookimpl
def graftwork_trainers() -> list[TrainerSpec]:
    native: dict[str, Any] = {"build": _build, "params": _params, "forecast": _forecast}
    pairs = {**native, "params": _dpo_params}
    return [
        TrainerSpec(name="NATIVE", aliases=("OUMI",), schemas=("text", "chat"), **native),
        TrainerSpec(name="NATIVE_PRETRAIN", schemas=("text",), **native),
        TrainerSpec(name="NATIVE_SFT", schemas=("chat",), **native),
        TrainerSpec(name="NATIVE_DPO", aliases=("DPO",), schemas=("preference",), **pairs),
    ]


def _adamw(groups: Any, learning_rate: float, training: Any) -> Any:
    from graftwork_native.optimizers import adamw

    return adamw(groups, learning_rate, training)


def _sgd(groups: Any, learning_rate: float, training: Any) -> Any:
    from graftwork_native.optimizers import sgd

    return sgd(groups, learning_rate, training)


def _adafactor(groups: Any, learning_rate: float, training: Any) -> Any:
    from graftwork_native.optimizers import adafactor

    return adafactor(groups, learning_rate, training)


@hookimpl
def graftwork_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec(name="adamw", aliases=("adamw_torch", "adamw_torch_fused"), build=_adamw),
        OptimizerSpec(name="sgd", build=_sgd),
        OptimizerSpec(name="adafactor", build=_adafactor),
    ]
