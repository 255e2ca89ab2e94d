"""``graft check`` and the run refuse the same, in the same words, and count the same steps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from graftwork import train
from graftwork.check.check import check_run
from graftwork.check.preview import preview
from graftwork.check.subject import SAMPLE
from graftwork.errors import DataError, GraftworkError, UsageError
from graftwork_trl.data import of_one_kind

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.check.report import Report
    from graftwork.config import RunConfig


def checked(folder: Path, config: RunConfig, limit: int | None = SAMPLE) -> Report:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return check_run(str(path), limit=limit)


def errors(report: Report) -> list[str]:
    return [line.text for part in report.parts for line in part.lines if line.status == "error"]


GRPO = {"reward_functions": ["length_penalty"], "num_generations": 4, "max_completion_length": 2}


@pytest.mark.parametrize(
    ("method", "split", "training", "said"),
    [
        (
            "TRL_KTO", {}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            "training.per_device_train_batch_size: 1: KTO estimates its KL term from the answers of the others in a "
            "batch; set 2 or more (gradient_accumulation_steps does not count), or trainer_kwargs.loss_type to "
            "apo_zero_unpaired, which has no such term",
        ),
        (
            "TRL_GRPO", {}, {"per_device_train_batch_size": 6, "trainer_kwargs": GRPO},
            "training.trainer_kwargs.num_generations: 4 answers to each prompt do not go evenly into the 6 of a step "
            "(per_device_train_batch_size x gradient_accumulation_steps x 1 process); change one of them",
        ),
        (
            "TRL_GRPO", {}, {"trainer_kwargs": {**GRPO, "reward_weights": [1.0, 2.0]}},
            "training.trainer_kwargs.reward_weights: 2 weights for 1 reward_functions; give one for each",
        ),
        (
            "TRL_GRPO", {"stream": True}, {"trainer_kwargs": GRPO},
            "data.*.stream: TRL_GRPO reads its prompts before the first step; set stream: false",
        ),
        (
            "TRL_DPO", {"pack": True}, {},
            "data.*.pack: TRL_DPO takes its samples one below another; set pack: false",
        ),
    ],
)  # fmt: skip
def test_what_a_method_cannot_do_is_said_by_both(
    toys: Any, tmp_path: Path, llama: Path, method: str, split: dict[str, Any], training: dict[str, Any], said: str
) -> None:
    config = toys.config(tmp_path, llama, method, toys.data(tmp_path, method, **split), training=training)
    assert errors(checked(tmp_path, config)) == [f"method: {said}"]
    with pytest.raises(UsageError) as caught:
        train(config)
    assert str(caught.value) == said


def test_one_sample_at_a_time_goes_without_the_kl_term(toys: Any, tmp_path: Path, llama: Path) -> None:
    training = {
        "per_device_train_batch_size": 1, "max_steps": 1, "trainer_kwargs": {"loss_type": "apo_zero_unpaired"},
    }  # fmt: skip
    config = toys.config(tmp_path, llama, "TRL_KTO", toys.data(tmp_path, "TRL_KTO"), training=training)
    assert not errors(checked(tmp_path, config))
    assert train(config).step == 1


def test_labels_that_are_none_are_rejected_by_both(toys: Any, tmp_path: Path, llama: Path) -> None:
    rows = toys.judged()
    rows[1]["label"] = "yes"
    data = {"train": toys.split(toys.write(tmp_path / "rows.jsonl", rows))}
    config = toys.config(tmp_path, llama, "TRL_KTO", data)
    (told,) = errors(checked(tmp_path, config))
    assert "rows.jsonl:2: label is 'yes'; each row says with label: true or false" in told
    with pytest.raises(DataError, match=r"rows\.jsonl:2: label is 'yes'; each row says with label: true or false"):
        train(config)


def test_labels_of_a_table(toys: Any, tmp_path: Path, llama: Path) -> None:
    """Cells are texts, and of verdicts there are these."""
    from graftwork_trl.data import load_data
    from graftwork_trl.methods import METHODS

    cells = ["True", "true", "1", "TRUE", "False", "false", "0", "FALSE"]
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,label\n" + "".join(f"q{n},a{n},{cell}\n" for n, cell in enumerate(cells)))
    config = toys.config(tmp_path, llama, "TRL_KTO", {"train": toys.split(path)})
    assert not errors(checked(tmp_path, config))
    loaded = load_data(config, METHODS["TRL_KTO"], toys.tokenizer(), frozenset({257}), 1)
    assert list(loaded.labels.values()) == [True] * 4 + [False] * 4


def warnings_of(report: Report) -> list[str]:
    (support,) = (part for part in report.parts if part.name == "support")
    return [line.text for line in support.lines if line.status == "warn" and "KTO" in line.text]


def test_the_check_doubts_answers_of_one_kind(
    toys: Any, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the run; not of a file that is sorted by its labels, though its first rows are of one kind."""
    one, two = (
        toys.write(tmp_path / f"{good}.jsonl", [{**row, "label": n < good} for n, row in enumerate(toys.judged())])
        for good in (10, 9)
    )
    told = (
        "data.train: all 10 answers are good ones (label), and KTO learns from the difference to bad ones: check the "
        "labels, or add rows of the other kind"
    )
    assert not warnings_of(checked(tmp_path, toys.config(tmp_path, llama, "TRL_KTO", {"train": toys.split(two)}), 2))
    config = toys.config(tmp_path, llama, "TRL_KTO", {"train": toys.split(one)})
    assert warnings_of(checked(tmp_path, config)) == [told]
    monkeypatch.setattr("graftwork_trl.checks.LABELS", 4)
    some = "all 4 answers that were looked at (4 rows of a dataset at most; --all for all) are good ones"
    assert warnings_of(checked(tmp_path, config, limit=2)) == [told.replace("all 10 answers are good ones", some)]
    assert warnings_of(checked(tmp_path, config, limit=None)) == [told]
    pairs = toys.split(toys.write(tmp_path / "pairs.jsonl", toys.pairs()), "preference_pairs_jsonl")
    gone = toys.split(tmp_path / "gone.jsonl")
    for split in (pairs, gone):
        report = checked(tmp_path, toys.config(tmp_path, llama, "TRL_KTO", {"train": split}))
        assert warnings_of(report) == []
        assert report.ok == (split is pairs)
        assert not any(text.startswith("method: ") for text in errors(report))


@pytest.mark.parametrize(("label", "kinds"), [(True, ("good", "bad")), (False, ("bad", "good"))])
def test_answers_of_one_kind_are_told(
    toys: Any,
    tmp_path: Path,
    llama: Path,
    caplog: pytest.LogCaptureFixture,
    label: bool,
    kinds: tuple[str, str],
) -> None:
    from graftwork_trl.data import load_data
    from graftwork_trl.methods import METHODS

    path = toys.write(tmp_path / "rows.jsonl", [{**row, "label": label} for row in toys.judged()])
    config = toys.config(tmp_path, llama, "TRL_KTO", {"train": toys.split(path)})
    load_data(config, METHODS["TRL_KTO"], toys.tokenizer(), frozenset({257}), 1)
    assert (
        f"data.train: all 10 answers are {kinds[0]} ones (label), and KTO learns from the difference to {kinds[1]} ones"
    ) in caplog.text
    assert of_one_kind({"a": True, "b": False}) is None
    assert of_one_kind({}) is None


def test_the_labels_of_validation_are_not_those_of_training(
    toys: Any, tmp_path: Path, llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pairs have answers of both kinds; the labels beside them are those of the other split."""
    from graftwork_trl.data import load_data
    from graftwork_trl.methods import METHODS

    labelled = toys.write(tmp_path / "labelled.jsonl", [{**row, "label": True} for row in toys.judged()])
    pairs = toys.split(toys.write(tmp_path / "pairs.jsonl", toys.pairs()), "preference_pairs_jsonl")
    config = toys.config(tmp_path, llama, "TRL_KTO", {"train": pairs, "validation": toys.split(labelled)})
    loaded = load_data(config, METHODS["TRL_KTO"], toys.tokenizer(), frozenset({257}), 1)
    assert set(loaded.labels.values()) == {True}
    assert "KTO learns from the difference" not in caplog.text


@pytest.mark.parametrize(
    ("training", "dataset"),
    [
        ({"num_train_epochs": 1}, {}),
        ({"num_train_epochs": 1.5}, {}),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 2}, {"sample_count": 7}),
        ({"num_train_epochs": 1, "per_device_train_batch_size": 64}, {}),
        ({"max_steps": 3}, {}),
    ],
)
def test_a_batch_counts_answers_and_so_does_the_check(
    toys: Any, tmp_path: Path, llama: Path, training: dict[str, Any], dataset: dict[str, Any]
) -> None:
    """The steps are those that the run takes, and the data's answers are no tokens of theirs."""
    training = {"max_steps": -1, "trainer_kwargs": GRPO, **training}
    data = toys.data(tmp_path, "TRL_GRPO")
    data["train"]["datasets"][0] |= dataset
    config = toys.config(tmp_path, llama, "TRL_GRPO", data, training=training)
    report = checked(tmp_path, config)
    steps = next(part for part in report.parts if part.name == "steps")
    assert report.ok
    assert train(config).step == steps.facts["steps"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["total_steps"] == steps.facts["steps"]
    batch = config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps
    assert steps.facts["blocks_per_step"] == batch // 4
    assert (steps.facts["tokens_per_epoch"], steps.facts["trained_tokens_per_epoch"]) == (None, None)
    said = [line.text for line in steps.lines]
    assert f"a step takes {batch // 4} prompts (4 answers to each)" in said
    assert (
        "the answers are drawn in the run, of 2 tokens at most: how many tokens a step has is not known before" in said
    )
    assert not any("trained" in text or "tokens in an epoch" in text for text in said)


def test_steps_of_prompts_that_cannot_be_counted(toys: Any, tmp_path: Path, llama: Path) -> None:
    """A file that cannot be read has no number of steps."""
    config = toys.config(
        tmp_path, llama, "TRL_GRPO", {"train": toys.split(toys.write(tmp_path / "rows.jsonl", []))},
        training={"max_steps": -1, "trainer_kwargs": GRPO},
    )  # fmt: skip
    steps = next(part for part in checked(tmp_path, config).parts if part.name == "steps")
    assert steps.facts["steps"] is None
    assert any("not known, because no training row could be read" in line.text for line in steps.lines)
    with pytest.raises(GraftworkError):
        train(config)


def test_what_is_counted_of_drawn_answers_is_prompts(toys: Any, tmp_path: Path, llama: Path) -> None:
    """The answers of the data are in no number: the account is the run's, though one answer is longer than a sample may
    be, one prompt is too long, and one question is there twice with other answers.
    """
    from graftwork_trl.grpo import Prompts, key_of
    from graftwork_trl.methods import METHODS

    rows = [*toys.sums(), {"question": "0+0=", "answer": "zero"}, {"question": "5+5=?", "answer": "ten " * 30}]
    rows.append({"question": "1+" * 40, "answer": "many"})
    split = toys.split(toys.write(tmp_path / "rows.jsonl", rows), max_length=20, over_long="drop")
    held_out = toys.split(toys.write(tmp_path / "held.jsonl", [{"question": "2+2=", "answer": "other"}]))
    config = toys.config(tmp_path, llama, "TRL_GRPO", {"train": split, "validation": held_out})
    report = checked(tmp_path, config)
    assert report.ok
    parts = {part.name: part for part in report.parts}
    (found,) = parts["data"].facts["splits"]["train"]
    prompts = Prompts(config, config.data.train, METHODS["TRL_GRPO"], toys.tokenizer())
    (account,) = prompts.facts()["datasets"]
    assert {**found, **account} == {**found, "closed": True}, "all that the run counts is counted by the check"
    assert (found["read"], found["used"]) == (11, 10)
    lengths = [len(prompts.ids[key_of(row["prompt"])]) for row in prompts.rows]
    assert found["lengths"] == {"min": min(lengths), "median": 11, "p95": max(lengths), "max": max(lengths)}
    assert parts["data"].facts["duplicates"] == {"train": 1, "train_and_validation": 1}
    said = [line.text for part in ("data", "template") for line in parts[part].lines]
    assert "train: tokens of a prompt that is used: 11 to 12, half of them up to 11, 95% up to 12" in said
    assert "train: 1 of 10 prompts are in it more than once" in said
    (twice,) = (text for text in said if "validation prompts are training prompts too" in text)
    assert twice.startswith("1 of 1 validation prompts") and "eval_reward will look better than it is" in twice
    assert (
        f"10 prompts of {sum(lengths)} tokens; the answers are drawn in the run, none of the data's is used"
    ) in said
    assert f"{tmp_path / 'rows.jsonl'}:1 asks '<user>0+0=\\n', after which the answer begins" in said
    assert not any("sample" in text or "trained" in text for text in said)
    ((shown,), *_) = preview(config, count=1)
    assert [token.role for token in shown.tokens] == ["user"] * 11
    assert not any(token.trained for token in shown.tokens)
