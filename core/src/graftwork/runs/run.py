"""One training run: its folder, what is appended to it, and who listens.

The folder holds ``config.yaml`` (resolved), ``run.json`` (versions, seed, data, result), ``metrics.jsonl``,
``samples.jsonl``, ``checkpoints/step-N/``, ``final/``, ``tensorboard/`` and ``report.html``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import yaml

from graftwork.errors import RunError, UsageError
from graftwork.files import remove_leftovers, sync, write_text
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from graftwork.config import RunConfig

logger = logging.getLogger(__name__)
Listener = Callable[["Run", int, Mapping[str, float]], None]

OWN = ("config.yaml", "metrics.jsonl", "samples.jsonl", "report.html", "final", "tensorboard")
"""What a run writes beside ``run.json``: a folder that holds one of these without it belongs to somebody else."""


class Run:
    """A run folder that is being written to. ``start_step`` is the step that a resumed run goes on from.

    ``fresh`` says that the folder was new, ``started`` that steps may have been taken.
    """

    writes = True
    """Whether this process writes the folder."""

    def __init__(self, folder: Path, config: RunConfig, lock: TextIO) -> None:
        self.folder = folder
        self.config = config
        self.start_step = 0
        self.fresh = True
        self.started = False
        self.metrics_path = folder / "metrics.jsonl"
        self.samples_path = folder / "samples.jsonl"
        self.record: dict[str, Any] = {}
        self.listeners: list[Listener] = []
        self._lock = lock

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = [path for path in (self.folder / "checkpoints").glob("step-*") if step_of(path) is not None]
        return sorted(found, key=lambda path: step_of(path) or 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of ``metrics.jsonl``, then the listeners."""
        self._append(self.metrics_path, {"step": step, **metrics})
        get_registry().events.step_finished(self, step, metrics)
        for listener in self.listeners:
            listener(self, step, metrics)

    def log_samples(self, step: int, stage: str, samples: Iterable[Mapping[str, Any]]) -> None:
        """One line of ``samples.jsonl`` each; nothing where this stage has its lines already (after a resume)."""
        if any(line["step"] == step and line.get("stage") == stage for line in read_lines(self.samples_path)):
            return
        for sample in samples:
            self._append(self.samples_path, {"step": step, "stage": stage, **sample})

    def update(self, **fields: Any) -> None:
        """Changes ``run.json``."""
        self.record.update(fields)
        with explained(self.folder):
            write_text(self.folder / "run.json", json.dumps(self.record, indent=2, default=str) + "\n")

    def start(self, step: int, *, evaluated: bool = True) -> None:
        """Goes on from ``step``: lines written after it are dropped, as are halves of lines. Where the step's
        evaluation is still to be made (not ``evaluated``), a line of it goes too.
        """
        self.start_step, self.started = step, True
        with explained(self.folder):
            write_text(self.folder / "config.yaml", self.config.to_yaml())
        for path in (self.metrics_path, self.samples_path):
            keep_lines(path, step, evaluated=evaluated)
        self.update(status="running", started=self.record.get("started") or now(), resumed_from=step or None)
        get_registry().events.run_started(self)

    def flush(self) -> None:
        """Puts the metrics on the disk: a checkpoint must not outlive the lines that came before it."""
        with explained(self.folder):
            for path in (self.metrics_path, self.samples_path, self.folder):
                if path.exists():
                    sync(path)

    def require_folder(self) -> None:
        """A folder that somebody removed is not made anew, as half of a run."""
        if not (self.folder / "run.json").exists():
            raise RunError(f"{self.folder}: {LOST}, then go on with --resume; or start anew")

    def discard(self) -> None:
        """Takes back a new run that never began, so that the same folder can be used when the mistake is mended."""
        for name in ("run.json", "config.yaml", ".lock"):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: somebody else's files are in it
            (self.folder / "checkpoints").rmdir()
            self.folder.rmdir()
        self.release()

    def release(self) -> None:
        """Lets other processes have the folder."""
        self._lock.close()

    def finish(self, error: BaseException | None, *, interrupted: bool = False, **result: Any) -> None:
        """Writes the end of the run, and its report."""
        status = "interrupted" if interrupted else "failed" if error else "finished"
        try:
            get_registry().events.run_finished(self, error)
            self.update(status=status, finished=now(), error=str(error) if error else None, result=result)
            self._write_report()
        finally:
            self.release()

    def _write_report(self) -> None:
        from graftwork.runs.report import write_report

        try:
            write_report(self.folder)
        except Exception as error:
            # The run itself is safe on the disk; a report can be written again from it.
            logger.warning("%s: no report: %s: %s", self.folder / "report.html", type(error).__name__, error)

    def _append(self, path: Path, data: Mapping[str, Any]) -> None:
        with explained(self.folder), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(data, ensure_ascii=False) + "\n")


def open_run(config: RunConfig, *, resume: bool) -> Run:
    """The run folder of a configuration, locked against other processes.

    A folder that holds a run is only gone on with, never written over.
    """
    folder = Path(config.training.output_dir)
    make_folder(folder)
    with explained(folder):
        for made in (folder, folder.parent):
            sync(made)
        lock = take_lock(folder)
        try:
            return enter(folder, config, lock, resume=resume)
        except BaseException:
            lock.close()
            raise


def make_folder(folder: Path) -> None:
    """Raises :class:`UsageError` where no folder can be made at ``training.output_dir``."""
    before = folder.is_dir()
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if before:
            raise RunError(f"{error.filename}: {os.strerror(error.errno or 0)}; {remedy(error)}") from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(
            f"training.output_dir: the folder {folder} cannot be made ({reason}: {error.filename}); choose another one"
        ) from error


def enter(folder: Path, config: RunConfig, lock: TextIO, *, resume: bool) -> Run:
    """The run in a locked folder, with what it was before where it is gone on with."""
    run = Run(folder, config, lock)
    if (folder / "run.json").exists():
        if not resume:
            raise UsageError(
                f"training.output_dir: {folder} holds a run already; go on with it (--resume), or choose another folder"
            )
        run.record, run.fresh = read_record(folder / "run.json"), False
        remove_leftovers(folder)
        remove_leftovers(folder / "checkpoints")
    elif orphans := run.checkpoints:
        raise UsageError(without_record(folder, orphans))
    elif foreign := [name for name in OWN if (folder / name).exists()]:
        raise UsageError(
            f"training.output_dir: {folder} has {', '.join(foreign)} in it, which no run here wrote and a run would "
            "write over; choose another folder"
        )
    else:
        # First of all, so that whatever else is in the folder is known to be this run's
        write_text(folder / "run.json", "{}\n")
    if not (folder / "config.yaml").exists():
        write_text(folder / "config.yaml", config.to_yaml())
    return run


def without_record(folder: Path, checkpoints: Sequence[Path]) -> str:
    """What is said of a folder whose ``run.json`` is lost. It is not made anew: which evaluations there were, and how
    a batch was shared out among processes, a checkpoint does not say.
    """
    from graftwork.runs.checkpoints import damage

    whole = [path for path in checkpoints if damage(path) is None]
    if not whole:
        broken = f"run.json is missing in {folder}, and none of its checkpoints ({checkpoints[-1].name}) is whole"
        return f"training.output_dir: {broken}; bring run.json back from a copy, or choose another folder"
    return (
        f"training.output_dir: run.json is missing in {folder}, which has a run's checkpoints (the newest that is "
        f"whole is {whole[-1].name}); bring it back from a copy, or go on from there in a new folder: "
        f"training.resume_from_checkpoint={whole[-1]} and another training.output_dir"
    )


def read_record(path: Path) -> dict[str, Any]:
    """What ``run.json`` says. Raises :class:`RunError` where it is not what a run wrote."""
    record = read_fields(path, json.loads)
    data = record.get("data", {})
    files = list(data.values()) if isinstance(data, dict) else [data]
    if not all(isinstance(part, dict) for part in (*files, record.get("begun_with", {}))):
        raise damaged(path, "its fields are not what a run writes")
    return record


def read_settings(path: Path) -> dict[str, Any]:
    """The sections in a run's ``config.yaml``. Raises :class:`RunError` where it is not what a run wrote."""
    settings = read_fields(path, yaml.safe_load)
    if not all(isinstance(section, dict | None) for section in settings.values()):
        raise damaged(path, "its sections are not what a run writes")
    return settings


def read_fields(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A file of names and values."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise damaged(path, " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise damaged(path, "it holds no names and values")
    return content


def damaged(path: Path, reason: str) -> RunError:
    """The error for a file of the run folder, with the way on: a checkpoint says itself what it belongs to."""
    return RunError(
        f"{path} is damaged ({reason}); go on from the run's last checkpoint, which holds all that is needed: give it "
        "as training.resume_from_checkpoint, and another training.output_dir"
    )


def step_of(checkpoint: Path) -> int | None:
    """The step of ``step-12``; None where the name is another."""
    number = checkpoint.name.removeprefix("step-")
    return int(number) if number.isdecimal() else None


def take_lock(folder: Path) -> TextIO:
    """Held as long as the process lives: two processes never write to one run."""
    file = (folder / ".lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(f"{folder}: another process is writing to this run; wait for it, or stop it first") from None
    return file


def keep_lines(path: Path, step: int, *, evaluated: bool = True) -> None:
    """Leaves the complete lines of steps up to ``step``, and none where the run begins anew at step 0.

    Without ``evaluated`` also none of an evaluation at ``step`` itself.
    """
    if not path.exists():
        return
    lines = [line for line in read_lines(path) if 0 < step >= line["step"]]
    if not evaluated:
        lines = [line for line in lines if line["step"] < step or "eval_loss" not in line]
    kept = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    with explained(path):
        write_text(path, "".join(kept))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file that are complete; the last one of a killed process may not be."""
    if not path.exists():
        return []
    # Not splitlines: a text may hold the other characters that end a line for Python
    *lines, _half = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [found for line in lines if (found := read_line(line)) is not None]


def read_line(line: str) -> dict[str, Any] | None:
    """The object in a line, or None where a full disk or a power cut left something else."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """A disk that says no, as an error that says where and what to do."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise RunError(f"{error.filename or path}: {reason}; {remedy(error)}, then go on with --resume") from error


LOST = "the run folder was removed or moved while the run was writing to it; put it back"


def remedy(error: BaseException) -> str:
    """What helps where something could not be written. Libraries hide the number, and mostly the disk is full."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make the folder writable or choose another training.output_dir"
    if number in (errno.ENOENT, errno.ESTALE):
        return LOST
    if number in (errno.ENOTDIR, errno.EEXIST):
        return "move what is in the way or choose another training.output_dir"
    return "make room or choose another training.output_dir"


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
