"""Entry module of graftwork's own trainers: declares them, imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork import hookimpl
from graftwork.specs import TrainerSpec

if TYPE_CHECKING:
    from pydantic import BaseModel

    from graftwork.check.forecast import Forecast, ForecastRequest
    from graftwork.check.methods import MethodRequest
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


def _refuse(request: MethodRequest) -> None:
    from graftwork_native.refusals import refuse

    refuse(request)


@hookimpl
def graftwork_trainers() -> list[TrainerSpec]:
    native: dict[str, Any] = {"build": _build, "params": _params, "forecast": _forecast, "refuse": _refuse}
    pairs = {**native, "params": _dpo_params}
    return [
        TrainerSpec(name="NATIVE", aliases=("OUMI",), schemas=("text", "chat"), **native),
        TrainerSpec(name="NATIVE_PRETRAIN", schemas=("text",), **native),
        TrainerSpec(name="NATIVE_SFT", schemas=("chat",), **native),
        TrainerSpec(name="NATIVE_DPO", aliases=("DPO",), schemas=("preference",), **pairs),
    ]
