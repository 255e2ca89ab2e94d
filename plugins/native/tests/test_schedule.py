"""Learning rates and parameter groups against those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Trainer, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from graftwork.builders.optimizers import parameter_groups
from graftwork.config import TrainingParams
from graftwork_native.schedule import learning_rate

STEPS = 23
SCHEDULES: list[tuple[str, str, dict[str, Any]]] = [
    ("linear", "linear", {}),
    ("cosine", "cosine", {}),
    ("constant", "constant_with_warmup", {}),
    ("cosine_with_restarts", "cosine_with_restarts", {"num_cycles": 3}),
    ("cosine_with_restarts", "cosine_with_restarts", {}),
    ("cosine_with_min_lr", "cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_with_min_lr", "cosine_with_min_lr", {"min_lr": 1e-5}),
]


@pytest.mark.parametrize(("name", "theirs", "options"), SCHEDULES)
@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 5}, {"warmup_ratio": 0.3}, {"warmup_steps": 0}])
def test_schedules(name: str, theirs: str, options: dict[str, Any], warmup: dict[str, Any]) -> None:
    training = TrainingParams(learning_rate=3e-4, lr_scheduler_type=name, lr_scheduler_kwargs=options, **warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    count = {"warmup_ratio": 7}.get(next(iter(warmup), ""), warmup.get("warmup_steps", 0))  # ceil(23 * 0.3)
    scheduler = get_scheduler(theirs, optimizer, count, STEPS, scheduler_specific_kwargs=dict(options))
    for step in range(STEPS):
        assert learning_rate(training, step, STEPS) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_what_decays_is_what_decays_in_transformers(toys: Any, kind: str) -> None:
    model = toys.model(kind)
    theirs = set(Trainer.get_decay_parameter_names(Trainer.__new__(Trainer), model))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, plain = parameter_groups(model, 0.1)
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    # theirs names a tied weight twice
    assert {names[id(parameter)] for parameter in decaying["params"]} == theirs & set(names.values())
    assert len(decaying["params"]) + len(plain["params"]) == len(names)
    assert get_parameter_names(model, []), "the names are those of a real model"


def test_frozen_and_tied_parameters_are_left_out_and_taken_once(toys: Any) -> None:
    model = toys.model("gpt2")
    model.transformer.h[0].requires_grad_(False)
    taken = [parameter for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert len({id(parameter) for parameter in taken}) == len(taken)
    assert all(parameter.requires_grad for parameter in taken)
    assert any(parameter is model.lm_head.weight for parameter in taken)
