"""The part of a check about an earlier run in the same folder, and whether this one can go on from it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from graftwork.check.report import Part
from graftwork.errors import GraftworkError
from graftwork.runs.run import OWN, Run, read_record

if TYPE_CHECKING:
    from graftwork.check.subject import Subject


def resume_part(subject: Subject) -> Part:
    """Nothing is written and no lock is taken."""
    config = subject.config
    folder = Path(config.training.output_dir)
    part = Part("resume", "Resuming", facts={"folder": str(folder), "holds_run": (folder / "run.json").is_file()})
    asked = bool(config.training.resume_from_checkpoint) or config.training.try_resume_from_last_checkpoint
    if not part.facts["holds_run"]:
        foreign = [name for name in OWN if (folder / name).exists()]
        if foreign:
            part.error(f"{folder} has {', '.join(foreign)} in it, which no run here wrote: choose another output_dir")
        else:
            part.ok(f"{folder} holds no run: this one begins at step 0")
        return part
    run = Run(folder, config, io.StringIO())
    try:
        run.record = read_record(folder / "run.json")
        compared(part, subject, run)
    except GraftworkError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        part.facts |= {"accepted": False, "differences": lines[1:-1], "reason": str(error)}
        say = part.error if asked else part.warn
        say(f"{folder} holds a run, and --resume would be refused: {lines[0]}")
        for line in lines[1:]:
            part.note(line)
    return part


def compared(part: Part, subject: Subject, run: Run) -> None:
    """Raises what ``--resume`` would."""
    from graftwork.data.loader import fingerprint
    from graftwork.training import checkpoint_to_resume

    config = subject.config
    data = {"train": fingerprint(config.data.train), "validation": fingerprint(config.data.validation)}
    checkpoint = checkpoint_to_resume(run, config, data)
    part.facts |= {"accepted": True, "checkpoint": str(checkpoint) if checkpoint else None, "differences": []}
    begin = f"goes on from {checkpoint.name}" if checkpoint else "begins at step 0, as it has no checkpoint yet"
    status = run.record.get("status", "not finished")
    part.ok(f"{run.folder} holds a run ({status}) of the same configuration and data: --resume {begin}")
    if not (config.training.resume_from_checkpoint or config.training.try_resume_from_last_checkpoint):
        part.warn(f"without --resume a run in {run.folder} is refused; go on with it, or choose another output_dir")
