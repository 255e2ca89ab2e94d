"""Writing so that a file, or a folder, is either the old one or the new one, whenever the plug is pulled."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place, puts it on the disk, and moves it there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends well, and goes if it does not.

    Everything in the folder is on the disk before it gets its name. A folder that has the name already stays until
    then, and is only deleted when the new one has the name for good.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    before: Path | None = None
    try:
        yield beside
        for file in sorted(beside.rglob("*")):
            sync(file)
        sync(beside)
        if path.exists():
            before = move_away(path, REPLACED)
        beside.rename(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        if before is not None and not path.exists():
            before.rename(path)
        raise
    sync(path.parent)
    if before is not None:
        remove_folder(before)


REPLACED, REMOVED = "old", "gone"
"""How the name of a folder ends that makes room for its successor, and of one that is being deleted."""


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process was writing, or removing, in ``folder``. Call it where nobody else writes.

    A folder that had made room for a successor which never came gets its name back.
    """
    for path in sorted(folder.glob(f".*.{REPLACED}")):
        name = path.with_name(path.name.removeprefix(".").removesuffix(f".{REPLACED}"))
        if not name.exists():
            path.rename(name)
    for path in [found for end in ("tmp", REPLACED, REMOVED) for found in folder.glob(f".*.{end}")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_folder(path: Path) -> None:
    """Removes a folder; half of one must never look like a whole one."""
    shutil.rmtree(move_away(path, REMOVED))


def move_away(path: Path, end: str) -> Path:
    """Takes a folder's name away from it, in one move."""
    away = path.with_name(f".{path.name.lstrip('.')}.{end}")
    shutil.rmtree(away, ignore_errors=True)
    return path.rename(away)


def sync(path: Path) -> None:
    """Puts a file's or folder's content on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
