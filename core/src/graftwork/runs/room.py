"""A disk that gets full while a checkpoint is written, said as that: libraries tell it in words of their own.

PyTorch's zip writer says ``unexpected pos 704 vs 598``, since a stream of C++ does not hand on why it failed.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from graftwork.errors import RunError
from graftwork.runs import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

FULL = (errno.ENOSPC, errno.EDQUOT)
PROBE_BYTES = 1 << 20
"""What a disk that is not full takes: less than that is left where a larger file broke off."""


@contextmanager
def room_for(target: Path, folder: Path, needed_bytes: Callable[[], int] | None) -> Iterator[None]:
    """Within the block ``folder`` is written to, which becomes ``target`` and takes about so many bytes.

    Raises :class:`RunError` where the disk is full, however that was said; every other error as it is.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = full_number(folder, error)
        if number is None:
            raise
        takes = f" It takes about {amount(needed_bytes())}, and there was room for" if needed_bytes else " It got to"
        there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        raise RunError(
            f"{target} could not be written: the disk that {target.parent} lies on is full "
            f"({os.strerror(number)}).{takes} {amount(there)}; nothing of it was left behind. Make room or choose "
            "another training.output_dir, then go on from the last checkpoint with --resume"
        ) from error


def full_number(folder: Path, error: Exception) -> int | None:
    """The disk's error number where it was full (or one's share of it) when ``error`` was raised, else None.

    Where the error has no number, the disk is asked for one.
    """
    if isinstance(error, OSError):
        return error.errno if error.errno in FULL else None
    probe = folder / "room"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as refused:
        return refused.errno if refused.errno in FULL else None
    finally:
        probe.unlink(missing_ok=True)
    return None


def saved_bytes(model: Any, optimizer: Any) -> int:
    """About what a checkpoint takes: :func:`weight_bytes`, and the optimizer's state."""
    return weight_bytes(model) + tensor_bytes(optimizer)


def weight_bytes(model: Any, dtype: torch.dtype | None = None) -> int:
    """The model's file, or that of its adapter alone; each shared weight once. ``dtype``: what a whole model is saved
    in, None: as it is.
    """
    adapter = hasattr(model, "peft_config")
    weights = [weight for weight in model.parameters() if weight.requires_grad or not adapter]
    return (
        tensor_bytes(weights)
        if dtype is None or adapter
        else sum(weight.numel() for weight in weights) * dtype.itemsize
    )


def tensor_bytes(value: Any) -> int:
    """The bytes of all tensors in plain containers."""
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(tensor_bytes, value))
    return int(getattr(value, "nbytes", 0))


def amount(value_bytes: int) -> str:
    """``3.21 GiB``."""
    return " ".join(words.memory(value_bytes))
