"""What the native trainers cannot do, said before anything is loaded: by `graft check`, and at the start of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.builders.dtype import choose_device_map, device_of
from graftwork_native.backward_step import require_one_process
from graftwork_native.offload import require_device
from graftwork_native.params import DpoParams
from graftwork_native.precision import autocast_dtype
from graftwork_native.reference import require_adapter

if TYPE_CHECKING:
    from graftwork.check.methods import MethodRequest


def refuse(request: MethodRequest) -> None:
    """Raises :class:`graftwork.errors.UsageError`."""
    config, training = request.config, request.config.training
    device = device_of(choose_device_map(config.model.device_map))
    autocast_dtype(config, device)
    if training.activation_offloading:
        require_device(device)
    if training.optimizer_in_backward:
        require_one_process(request.processes)
    if isinstance(request.params, DpoParams):
        require_adapter(config, request.params)
