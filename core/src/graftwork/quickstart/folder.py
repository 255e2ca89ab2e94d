"""A new folder for each run of the quickstart."""

from __future__ import annotations

import os
from pathlib import Path

from graftwork.errors import RunError


def fresh_folder(parent: Path) -> tuple[Path, Path | None]:
    """Makes ``run-1`` in ``parent``, or the next number that is free; also the newest run that was there before.

    Raises :class:`RunError` where no folder can be made.
    """
    before: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while (folder := parent / f"run-{number}").exists():
            before, number = folder, number + 1
        folder.mkdir()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise RunError(f"--output-dir {parent}: no folder can be made there ({reason}); give another one") from error
    return folder, before


def shown(path: Path) -> str:
    """The path as one would type it here: relative where it is below the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
