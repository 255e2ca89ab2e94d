"""The run as a process sees it that is not its first: it reads the folder, and writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from graftwork.runs.run import Run, read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from graftwork.config import RunConfig


class Follower(Run):
    """Metrics, events and the report are the first process's; the record is kept in memory."""

    writes = False

    def __init__(self, config: RunConfig) -> None:
        super().__init__(Path(config.training.output_dir), config, cast("TextIO", None))
        if (self.folder / "run.json").exists():
            self.record = read_record(self.folder / "run.json")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def log_samples(self, step: int, stage: str, samples: Iterable[Mapping[str, Any]]) -> None:
        """Nothing."""

    def update(self, **fields: Any) -> None:
        """In memory alone."""
        self.record.update(fields)

    def start(self, step: int, *, evaluated: bool = True) -> None:
        """Only notes where the run goes on."""
        self.start_step, self.started = step, True

    def flush(self) -> None:
        """Nothing."""

    def discard(self) -> None:
        """Nothing."""

    def release(self) -> None:
        """Nothing: the first process holds the lock."""

    def finish(self, error: BaseException | None, *, interrupted: bool = False, **result: Any) -> None:
        """Nothing."""
