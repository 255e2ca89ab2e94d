"""Weights on disk: the formats they lie in, the maps between the names in them, and the way from one to another.

Importing this is cheap: torch is loaded when one of its names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.checkpoints.checkpointers import FullModelHFCheckpointer, FullModelMetaCheckpointer
    from graftwork.checkpoints.conversion import convert
    from graftwork.checkpoints.formats import Checkpoint, find_format, open_checkpoint

_EXPORTS = {
    "FullModelHFCheckpointer": "graftwork.checkpoints.checkpointers",
    "FullModelMetaCheckpointer": "graftwork.checkpoints.checkpointers",
    "convert": "graftwork.checkpoints.conversion",
    "Checkpoint": "graftwork.checkpoints.formats",
    "find_format": "graftwork.checkpoints.formats",
    "open_checkpoint": "graftwork.checkpoints.formats",
}

__all__ = [
    "Checkpoint",
    "FullModelHFCheckpointer",
    "FullModelMetaCheckpointer",
    "convert",
    "find_format",
    "open_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
