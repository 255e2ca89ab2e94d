"""How many checkpoints are said to lie on the disk, against a plain walk through the run."""

from __future__ import annotations

import random
from typing import Any

import pytest

from graftwork.check.disk import checkpoints
from graftwork.config import TrainingParams

CASES: list[tuple[dict[str, Any], int, int]] = [
    ({"save_steps": 0}, 10, 0),
    ({"save_steps": 4}, 10, 0),
    ({"save_steps": 4}, 8, 0),
    ({"save_steps": 500}, 3, 0),
    ({"save_steps": 2, "save_total_limit": 2}, 9, 0),
    ({"save_steps": 0, "save_epoch": True}, 10, 3),
    ({"save_steps": 2, "keep_best": 3, "eval_strategy": "steps", "eval_steps": 1}, 12, 0),
    ({"save_steps": 0, "keep_best": 2, "eval_strategy": "steps", "eval_steps": 3}, 12, 0),
    ({"save_steps": 0, "save_total_limit": 3, "keep_best": 2, "eval_strategy": "steps", "eval_steps": 2}, 20, 0),
    ({"save_steps": 4, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}, 12, 0),
    ({"save_steps": 2, "save_total_limit": 1, "load_best_model_at_end": True, "eval_strategy": "epoch"}, 12, 5),
]


@pytest.mark.parametrize(("fields", "total", "epoch"), CASES)
def test_it_is_the_most_that_a_run_can_leave(fields: dict[str, Any], total: int, epoch: int) -> None:
    """Over many runs whose evaluations come out anyhow, one of which gets better all the time."""
    training = TrainingParams(trainer_type="TOY", **fields)
    generator = random.Random(0)
    runs = [[-float(step) for step in range(total)]]
    runs += [[generator.random() for _ in range(total)] for _ in range(2000)]
    walks = [walk(training, total, epoch, losses) for losses in runs]
    assert checkpoints(training, total, epoch, evaluated=True) == tuple(
        max(column) for column in zip(*walks, strict=True)
    )


def walk(training: TrainingParams, total: int, epoch: int, losses: list[float]) -> tuple[int, int]:
    """Step by step: what is there at the end, and the most at once."""
    there: set[int] = set()
    best: list[int] = []
    keeps = training.load_best_model_at_end or training.keep_best is not None
    newest = training.save_total_limit or (1 if training.keep_best else None)
    most = 0
    for step in range(1, total + 1):
        last, ends = step == total, bool(epoch) and step % epoch == 0
        strategy = training.eval_strategy
        if last or (strategy == "steps" and step % training.eval_steps == 0) or (strategy == "epoch" and ends):
            best = sorted([*best, step], key=lambda at: losses[at - 1])[: training.keep_best or 1]
        due = bool(training.save_steps) and (last or step % training.save_steps == 0)
        if due or (keeps and step in best) or (training.save_epoch and (ends or last)):
            there.add(step)
            most = max(most, len(there))
            if newest:
                there = {*sorted(there)[-newest:], *(there & set(best) if keeps else ())}
    return len(there), most


def test_without_validation_nothing_is_kept_for_being_best() -> None:
    training = TrainingParams(trainer_type="TOY", save_steps=2, save_total_limit=2, load_best_model_at_end=True)
    assert checkpoints(training, 20, 0, evaluated=False) == (2, 3)
