"""What a run writes to its disk: the checkpoints that are there at once, and the final model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftwork.check.forecast import Forecast
    from graftwork.check.report import Part
    from graftwork.check.subject import Subject
    from graftwork.config import TrainingParams


def disk(part: Part, subject: Subject, forecast: Forecast) -> None:
    """Checkpoints as many as are kept (and one more while it is written), the final model, and the free space."""
    training = subject.config.training
    kept, most = checkpoints(training, *steps_of(subject), evaluated=bool(subject.config.data.validation.datasets))
    final = forecast.final_bytes if training.save_final_model else 0
    wanted = most * forecast.checkpoint_bytes + final
    free = shutil.disk_usage(existing(Path(training.output_dir).absolute())).free
    part.facts["disk"] = {"checkpoints": kept, "wanted_bytes": wanted, "free_bytes": free}
    if not wanted:
        part.warn("nothing of this run is kept: save_steps is 0, and save_final_model is off")
        return
    listed = f"{kept:,} checkpoint{'' if kept == 1 else 's'} of {amount(forecast.checkpoint_bytes)}"
    text = (
        f"disk: {listed if kept else 'no checkpoint'}, final model {amount(final) if final else 'not saved'}: at most "
        f"{amount(wanted)}; {amount(free)} are free for {training.output_dir}"
    )
    if wanted > free:
        part.error(f"{text}: set save_total_limit, save less often, or choose another output_dir")
    else:
        part.ok(text)


def checkpoints(training: TrainingParams, total: int, epoch: int, *, evaluated: bool) -> tuple[int, int]:
    """How many checkpoints stay, and how many there are at once at most: a new one is whole before an old one goes.

    ``total``: steps of the run, ``epoch``: of one epoch, 0 where that is not known.
    """
    saves = steps_at(total, training.save_steps, epoch if training.save_epoch else 0)
    best, only_best = 0, not saves
    if evaluated and (training.load_best_model_at_end or training.keep_best):
        best = training.keep_best or 1
        strategy = training.eval_strategy
        # The worst case: each evaluation is the best so far, and saved for that.
        saves |= steps_at(
            total, training.eval_steps if strategy == "steps" else 0, epoch if strategy == "epoch" else 0
        ) | {total}
    newest = training.save_total_limit or (1 if training.keep_best else None)
    written = len(saves - {0})
    # Where a checkpoint is only written for an evaluation, the newest is one of the best.
    kept = written if newest is None else min(written, newest + best - only_best)
    return kept, kept + (kept < written)


def steps_at(total: int, every: int, epoch: int) -> set[int]:
    """Each ``every`` steps and at the end of each epoch, where those are not 0; where one is not, at the end too."""
    found = {*range(every, total + 1, every)} if every else set()
    found |= {*range(epoch, total + 1, epoch)} if epoch else set()
    return found | {total} if every or epoch else found


def steps_of(subject: Subject) -> tuple[int, int]:
    """The steps of the run and of an epoch, as far as they are known."""
    from graftwork.check.steps import steps_part

    facts = steps_part(subject).facts
    return int(facts.get("steps") or 0), int(facts.get("steps_per_epoch") or 0)


def existing(path: Path) -> Path:
    """The nearest folder above (or at) ``path`` that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def amount(size: float) -> str:
    """``1.4 GiB``."""
    from graftwork.runs import words

    return " ".join(words.memory(size))
