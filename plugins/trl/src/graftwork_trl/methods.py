"""TRL's classes by the name of the method, each imported alone and only when it is used."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from graftwork.errors import UsageError

TESTED = "trl>=1.16,<1.17"


@dataclass(frozen=True, slots=True)
class Method:
    """Where TRL has a method, and what it needs. ``reference``: a frozen copy of the model, as a keyword."""

    name: str
    module: str
    stem: str
    batch: Literal["language", "preference", "unpaired", "reward", "odds", "prompts"]
    reference: bool = False

    def load(self) -> tuple[Any, Any]:
        """TRL's trainer and configuration class. Raises :class:`UsageError` where this TRL does not have them."""
        try:
            with warnings.catch_warnings():
                # Said of everything under trl.experimental; that ORPO is there stands in docs/methods.md.
                warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
                module = import_module(self.module)
                return getattr(module, f"{self.stem}Trainer"), getattr(module, f"{self.stem}Config")
        except (ImportError, AttributeError, RuntimeError) as error:
            raise UsageError(
                f"training.trainer_type: {self.name} needs {self.module}.{self.stem}Trainer, which the installed trl "
                f"{installed()} does not give ({type(error).__name__}: {error}); install the version that this is "
                f"tested with: pip install '{TESTED}'"
            ) from error


METHODS = {
    method.name: method
    for method in (
        Method("TRL_SFT", "trl", "SFT", "language"),
        Method("TRL_DPO", "trl", "DPO", "preference", reference=True),
        Method("TRL_KTO", "trl", "KTO", "unpaired", reference=True),
        Method("TRL_RM", "trl", "Reward", "reward"),
        Method("TRL_GRPO", "trl", "GRPO", "prompts"),
        Method("TRL_ORPO", "trl.experimental.orpo", "ORPO", "odds"),
    )
}


def installed() -> str:
    """The version of trl."""
    try:
        return version("trl")
    except PackageNotFoundError:
        return "(not installed)"


def quiet(level: str) -> None:
    """Notices of TRL and accelerate from ``level`` on."""
    for library in ("trl", "accelerate"):
        logging.getLogger(library).setLevel(level.upper())
