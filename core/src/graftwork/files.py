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
    then.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for file in sorted(beside.rglob("*")):
            sync(file)
        sync(beside)
        before = retire(path) if path.exists() else None
        beside.rename(path)
        if before is not None:
            shutil.rmtree(before)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process was writing, or removing, in ``folder``. Call it where nobody else writes."""
    for path in [*folder.glob(".*.tmp"), *folder.glob(".*.old")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_folder(path: Path) -> None:
    """Removes a folder; half of one must never look like a whole one."""
    shutil.rmtree(retire(path))


def retire(path: Path) -> Path:
    """Takes a folder's name away from it, in one move."""
    retired = path.with_name(f".{path.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    return path.rename(retired)


def sync(path: Path) -> None:
    """Puts a file's or folder's content on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
