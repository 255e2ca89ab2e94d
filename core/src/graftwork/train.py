"""``train``: a configuration in, a run folder out. Everything that does not depend on the method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pydantic import BaseModel

    from graftwork.config import RunConfig
    from graftwork.runs.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What a trainer gets: the validated configuration, its own validated option block, the run to write
    to, and the checkpoint folder to go on from."""

    config: RunConfig
    params: BaseModel | None
    run: Run
    resume_from: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run came to. ``metrics`` are the last ones of each name, ``model_path`` the final folder."""

    output_dir: Path
    model_path: Path | None
    step: int
    metrics: dict[str, float]
    interrupted: bool = False


class Trainer(Protocol):
    """One training method, ready to run."""

    def train(self) -> TrainResult:
        """Runs to the end, or to Ctrl-C, which saves and returns with ``interrupted`` set."""
        ...


def train(config: RunConfig, **_: Any) -> TrainResult:
    raise NotImplementedError
