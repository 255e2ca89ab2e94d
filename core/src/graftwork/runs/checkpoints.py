"""Checkpoints of a run: written whole, sealed with a list of their files, checked before anything goes on from them.

``checkpoints/step-N/checkpoint.json`` says what the checkpoint belongs to (configuration, fingerprints of the data,
versions), which evaluation was made of it, and the size and SHA-256 of every other file in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from graftwork.errors import RunError
from graftwork.files import complete_folder
from graftwork.runs.room import room_for
from graftwork.runs.run import remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from graftwork.runs.run import Run

logger = logging.getLogger(__name__)

SEAL = "checkpoint.json"
DAMAGED = "damaged-"
"""In front of the name of a checkpoint that was set aside."""


@contextmanager
def new_checkpoint(
    run: Run,
    step: int,
    evaluation: Mapping[str, float] | None = None,
    needed_bytes: Callable[[], int] | None = None,
) -> Iterator[Path]:
    """A folder to write the checkpoint of ``step`` into; ``checkpoints/step-N`` is all of it, or does not change.

    ``evaluation`` are the metrics of an evaluation of these very weights; ``needed_bytes`` is asked where the disk is
    full, which is a :class:`RunError`. Raises :class:`OSError` as the disk does for all else.
    """
    run.require_folder()
    path = run.folder / "checkpoints" / f"step-{step}"
    with complete_folder(path) as folder, room_for(path, folder, needed_bytes):
        yield folder
        seal(folder, {"step": step, "evaluation": evaluation, **belonging(run)})


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Whatever the disk, torch or safetensors say to a folder that is written, as an error that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        helps = remedy(error)
        raise RunError(
            f"{path} could not be written: {error}; nothing of it was left behind. {helps[0].upper()}{helps[1:]}, then "
            "go on from the last checkpoint with --resume"
        ) from error


def belonging(run: Run) -> dict[str, Any]:
    """What says of which run something is, as JSON keeps it."""
    kept = {"config": yaml.safe_load(run.config.to_yaml())}
    kept |= {name: run.record.get(name, {}) for name in ("data", "versions")}
    return as_json(kept)


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data as JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return plain


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the list of the folder's files, with ``facts`` and a digest of the list itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest_of, files))
    listed = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, digests, strict=True)
    }
    content = as_json({"format": 1, **facts, "files": listed})
    text = json.dumps({**content, "sha256": digest_of_json(content)}, indent=2)
    (folder / SEAL).write_text(text + "\n", encoding="utf-8")


def read_seal(folder: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` says. Raises :class:`ValueError` where it is none, or not the one that was written."""
    try:
        content = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        digest = content.pop("sha256")
    except FileNotFoundError:
        raise ValueError(f"{SEAL} is missing") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{SEAL} cannot be read ({type(error).__name__}: {error})") from error
    if digest != digest_of_json(content):
        raise ValueError(f"{SEAL} is not as it was written")
    return dict(content)


def damage(folder: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint: the file and what is the matter with it; None where it is whole.

    Without ``contents`` only that every file is there in its size.
    """
    try:
        files = read_seal(folder)["files"]
    except ValueError as error:
        return str(error)
    for name, written in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != written["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, not {written['bytes']:,}"
    if not contents:
        return None
    with ThreadPoolExecutor() as pool:
        problems = pool.map(lambda name: content_problem(folder / name, files[name]["sha256"]), files)
        return next((f"{name} {problem}" for name, problem in zip(files, problems, strict=True) if problem), None)


def content_problem(path: Path, sha256: str) -> str | None:
    """What is wrong with a file that should have this digest."""
    try:
        return None if digest_of(path) == sha256 else "has other bytes than were written"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_json(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, however its text is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def newest_whole(run: Run) -> Path | None:
    """The newest checkpoint that is whole, or None where the run has none at all. Nothing is changed.

    Raises :class:`RunError` where every checkpoint is damaged: nothing begins anew unasked.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(run.checkpoints):
        reason = damage(path)
        if reason is None:
            for broken, what in damaged:
                logger.warning("%s is damaged: %s. The run goes on from %s", broken, what, path.name)
            return path
        damaged.append((path, reason))
    if damaged:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in damaged)
        raise RunError(
            f"{run.folder} has no checkpoint that is whole:\n{listed}\nBring one back from a copy, or start a new run "
            "in another training.output_dir"
        )
    return None


def set_aside_newer(run: Run, checkpoint: Path) -> None:
    """Gives the checkpoints that come after :func:`newest_whole`, which are damaged, names that nothing looks for."""
    places = run.checkpoints
    for path in places[places.index(checkpoint) + 1 :] if checkpoint in places else []:
        logger.warning("%s is kept as %s", path, set_aside(path))


def require_whole(path: Path) -> None:
    """Raises :class:`RunError` where a checkpoint that was asked for by name is damaged."""
    if reason := damage(path):
        raise RunError(f"{path} is not a checkpoint that can be resumed: {reason}")


def set_aside(path: Path) -> str:
    """Gives a damaged checkpoint another name, under which nothing is looked for, and says which."""
    taken = {found.name for found in path.parent.iterdir()}
    names = (f"{DAMAGED}{path.name}{f'-{number}' if number > 1 else ''}" for number in range(1, len(taken) + 2))
    name = next(name for name in names if name not in taken)
    path.rename(path.with_name(name))
    return name
