"""What a native run refuses is said by the check too, by the same function."""

from __future__ import annotations

from typing import Any

import pytest

from graftwork.check.methods import MethodRequest
from graftwork.config import RunConfig
from graftwork.errors import UsageError
from graftwork.registry import get_registry
from graftwork_native.params import DpoParams


@pytest.mark.parametrize(
    ("trainer", "training", "processes", "message"),
    [
        (
            "NATIVE_SFT",
            {"mixed_precision_dtype": "fp16"},
            1,
            r"training\.mixed_precision_dtype: fp16 needs loss scaling",
        ),
        ("NATIVE_SFT", {"optimizer_in_backward": True}, 2, r"training\.optimizer_in_backward: with several processes"),
        ("NATIVE_SFT", {"activation_offloading": True}, 1, r"training\.activation_offloading: the model is on the CPU"),
        ("NATIVE_DPO", {}, 1, r"training\.trainer_kwargs\.reference: adapter needs an adapter to switch off"),
    ],
)
def test_what_is_refused(trainer: str, training: dict[str, Any], processes: int, message: str) -> None:
    config = RunConfig(
        model={"model_name": "gpt2", "device_map": "cpu"}, training={"trainer_type": trainer, **training}
    )
    params = DpoParams(reference="adapter") if trainer == "NATIVE_DPO" else None
    spec = get_registry().trainers[trainer]
    assert spec.refuse is not None
    with pytest.raises(UsageError, match=message):
        spec.refuse(MethodRequest(config=config, params=params, processes=processes))


def test_what_is_not() -> None:
    config = RunConfig(model={"model_name": "gpt2", "device_map": "cpu"}, training={"optimizer_in_backward": True})
    refuse = get_registry().trainers["NATIVE_SFT"].refuse
    assert refuse is not None
    refuse(MethodRequest(config=config, params=None))
