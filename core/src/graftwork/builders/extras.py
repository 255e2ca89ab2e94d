"""Lazy exports of the packages that need ``graftwork[models]``, with an error that names the extra."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from graftwork.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_HEAVY = frozenset({"torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "huggingface_hub"})


def import_heavy(module: str) -> Any:
    """Imports ``module``; raises :class:`MissingExtraError` where something of ``graftwork[models]`` is missing."""
    # PEFT imports bitsandbytes wherever that is installed, which warns then of compiled code that it did not fetch.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _HEAVY:
            raise
        raise MissingExtraError(
            f'this needs {missing}, which is not installed: pip install "graftwork[models]"'
        ) from error


def importable(module: str) -> bool:
    """Whether ``module`` is installed; nothing is imported but the packages that it lies in."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def lazy_exports(package: str, exports: Mapping[str, str], namespace: dict[str, Any]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that imports each name of ``exports`` (name to module) on first use."""

    def getattr_(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_heavy(exports[name]), name)
        namespace[name] = value
        return value

    return getattr_
