"""Where a model's weights lie and in which precision, decided before anything is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from graftwork.checkpoints.loading import stored_dtype
from graftwork.checkpoints.safetensors_files import read_headers
from graftwork.errors import ModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

logger = logging.getLogger("graftwork.model")

# The floating types that a model may be built in
_LOADED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DISPATCHED = ("balanced", "balanced_low_0", "sequential")

DeviceMap = str | Mapping[str, Any] | None


def choose_device_map(asked: DeviceMap) -> DeviceMap:
    """What ``from_pretrained`` gets: one device for ``auto`` wherever one will do, None for the CPU.

    With several CUDA devices and no launcher ``auto`` spreads the model over them, as it does in transformers.
    """
    if not isinstance(asked, str):
        return asked
    if asked in {"auto", *_DISPATCHED}:
        return _automatic(asked)
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        known = ", ".join(("auto", *_DISPATCHED))
        raise UsageError(
            f"model.device_map {asked!r}: neither a device (cpu, cuda:0, mps) nor one of {known}"
        ) from error
    _check_present(device)
    return None if device.type == "cpu" else {"": str(device)}


def device_of(device_map: DeviceMap) -> torch.device:
    """The (first) device of what :func:`choose_device_map` gave. The ``torch.device`` context counts too."""
    if device_map is None:
        return torch.get_default_device()
    if isinstance(device_map, str):
        return torch.device("cuda")
    first = next(iter(device_map.values()))
    return torch.device("cuda", first) if isinstance(first, int) else torch.device("cpu" if first == "disk" else first)


def checkpoint_dtype(config_values: Mapping[str, Any], path: Path) -> torch.dtype:
    """The dtype that a checkpoint is in: as ``config.json`` says, else as its first floating tensor is."""
    stated = config_values.get("dtype") or config_values.get("torch_dtype")
    if stated and isinstance(getattr(torch, str(stated), None), torch.dtype):
        dtype: torch.dtype = getattr(torch, str(stated))
        return dtype
    if not (files := sorted(path.glob("*.safetensors"))):
        return stored_dtype(path) or torch.float32
    headers = (entry.header for file in files for entry in read_headers(file).values())
    return next((header.dtype for header in headers if header.dtype in _LOADED), torch.float32)


def choose_dtype(asked: str, device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    """The dtype to load in. ``stored`` is the checkpoint's, None for fresh weights.

    On a CPU a half-precision checkpoint becomes bfloat16: a 2-core CPU multiplies float16 matrices at 0.27
    GFLOP/s and bfloat16 ones at 795. Raises :class:`UsageError` where float16 is asked for there.
    """
    if asked == "auto":
        dtype = stored or torch.get_default_dtype()
        if dtype is torch.float16 and device.type == "cpu":
            logger.info(
                "the checkpoint is float16, which is about 3000 times slower than bfloat16 on a CPU: loaded as bfloat16"
            )
            return torch.bfloat16
        return dtype
    chosen: torch.dtype = getattr(torch, asked)
    if chosen is torch.float16 and device.type == "cpu":
        raise UsageError(
            "model.torch_dtype float16 on a CPU: matrix products run at 0.27 GFLOP/s there, against 795 in bfloat16. "
            "Use bfloat16, float32 or auto"
        )
    return chosen


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


def _automatic(asked: str) -> DeviceMap:
    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")
        if rank is None and torch.cuda.device_count() > 1:
            return asked
        return {"": f"cuda:{rank or 0}"}
    return {"": "mps"} if torch.backends.mps.is_available() else None


def _check_present(device: torch.device) -> None:
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"model.device_map {device}: this machine has {torch.cuda.device_count()} CUDA devices that torch "
            f"{torch.__version__} can use; auto takes what there is"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("model.device_map mps: this machine has none; auto takes what there is")
