"""Names of other systems: each leads to a setting that is there."""

from __future__ import annotations

import pytest

from graftwork.config import RunConfig
from graftwork.config.elsewhere import ELSEWHERE
from graftwork.config.fields import known_names, model_at
from graftwork.config.origins import parse_path


@pytest.mark.parametrize(("theirs", "ours"), ELSEWHERE.items())
def test_the_table_leads_to_fields_and_hides_none(theirs, ours):
    for place in ours.split(" or "):
        *section, name = parse_path(place.partition(" ")[0])
        owner = model_at(RunConfig, tuple(section))
        assert name in owner.model_fields
        assert theirs == name or theirs not in known_names(owner)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("training.batch_size=4", "training.per_device_train_batch_size?"),
        ("training.epochs=3", "training.num_train_epochs?"),
        ("training.report_to=wandb", "training.enable_wandb or training.enable_tensorboard?"),
        ("training.fp16=true", "training.mixed_precision_dtype?"),
        ("training.lr=1e-4", "training.learning_rate?"),
        ("--lr=1e-4", "training.learning_rate?"),
        ("--batch-size=4", "training.per_device_train_batch_size?"),
        ("training.lr_scheduler=cosine", "training.lr_scheduler_type?"),
        ("training.gradient_accumulation=2", "training.gradient_accumulation_steps?"),
        ("data.train.max_seq_length=64", "data.train.max_length?"),
        ("model.max_seq_len=64", "data.train.max_length?"),
        ("lora={r: 8}", "peft (with training.use_peft: true)?"),
        ("quantization=4bit", "peft.q_lora?"),
        ("dataset=alpaca", "data.train.datasets?"),
    ],
)
def test_a_name_of_another_system_leads_to_ours(mistakes, written, meant):
    found = [problem for problem in mistakes("model: {model_name: ./model}\n", written) if "other systems" in problem]
    assert found == [f"command line: {written}: unknown key, which other systems have; did you mean {meant}"]


def test_a_method_named_in_part_leads_to_all_that_have_it(mistakes):
    (problem,) = (each for each in mistakes("", "training.trainer_type=sft") if "there is no trainer" in each)
    assert "there is no trainer 'sft'; did you mean " in problem
    assert "TOY_SFT" in problem.partition("?")[0]


def test_of_many_names_the_nearest_are_listed(mistakes):
    (problem,) = (each for each in mistakes("", "training.seeed=1") if "seeed" in each)
    assert "did you mean seed? Nearest of " in problem
    assert problem.partition("Nearest of ")[2].partition(": ")[2].startswith("seed, ")
