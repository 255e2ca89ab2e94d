"""Mistakes in the data section that are found before anything heavy: what takes the rows, and what is held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from graftwork.config import RunConfig
from graftwork.config.checks import check_all
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mistakes(tmp_path: Path) -> Any:
    """The problems of a data section, as texts."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Q", "completion": "A"}\n')
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')

    def find(
        name: str, *, path: str | None = "rows.jsonl", train: Any = None, data: Any = None, **dataset: Any
    ) -> list[str]:
        one = {"dataset_name": name, "dataset_path": path and str(tmp_path / path), **dataset}
        given = {"train": {"datasets": [one], **(train or {})}, **(data or {})}
        config = RunConfig(data=given, model={"model_name": "llama2_7b", "load_pretrained_weights": False})
        found = [problem for problem in check_all(config) if problem.path[0] == "data"]
        return [f"{'.'.join(map(str, problem.path))}: {problem.text}" for problem in found]

    return find


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("text_sft", {"train": {"collator_name": "text_with_padding"}}),
        ("text", {"train": {"collator_name": "text_with_padding"}}),
        ("text_sft_jsonl", {"train": {"max_rejected": 0.1}, "data": {"validation_fraction": 0.1}}),
        ("org/name", {"path": None, "split": "train[:10%]", "subset": "main"}),
        ("org/name", {"path": None, "train": {"collator_name": "text_with_padding"}}),
        ("huggingface", {"dataset_kwargs": {"schema": "Chat"}, "train": {"collator_name": "text_with_padding"}}),
        ("text_sft", {"path": "saved", "split": "test"}),
    ],
)  # fmt: skip
def test_what_fits(mistakes: Any, name: str, fields: dict[str, Any]) -> None:
    assert mistakes(name, **fields) == []


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (
            "text_sft",
            {"train": {"collator_name": "dpo_with_padding"}},
            "data.train.collator_name: takes preference rows, and text_sft gives chat; change one of the two",
        ),
        (
            "text",
            {"train": {"collator_name": "text_completions_only_with_padding"}},
            "data.train.collator_name: takes chat rows, and text gives text; change one of the two",
        ),
        (
            "org/name",
            {"path": None, "dataset_kwargs": {"schema": "text"}, "train": {"collator_name": "dpo_with_padding"}},
            "data.train.collator_name: takes preference rows, and org/name gives text; change one of the two",
        ),
        ("huggingface", {"path": None}, "data.train.datasets.0.dataset_path: missing; huggingface reads a file"),
        ("text_stf", {}, "data.train.datasets.0.dataset_name: there is no dataset 'text_stf'; did you mean text_sft"),
        ("sft_text", {}, "data.train.datasets.0.dataset_name: there is no dataset 'sft_text'; did you mean text_sft"),
        (
            "text_sft",
            {"split": "test"},
            "data.train.datasets.0.split: files have no split; remove it, and name in dataset_path the files of this",
        ),
        (
            "org/name",
            {"path": None, "dataset_kwargs": {"schema": "texts"}},
            "data.train.datasets.0.dataset_kwargs: not a choice; did you mean text? Known: chat, image-chat, pref",
        ),
        (
            "text_sft",
            {"data": {"validation": {"datasets": [{"dataset_name": "text_sft", "dataset_path": "/dev/null"}]},
                      "validation_fraction": 0.1}},
            "data.validation_fraction: data.validation.datasets names the validation data already; keep one of the two",
        ),
    ],
)  # fmt: skip
def test_what_does_not(mistakes: Any, name: str, fields: dict[str, Any], said: str) -> None:
    assert any(problem.startswith(said) for problem in mistakes(name, **fields)), mistakes(name, **fields)


def test_a_mistake_in_held_out_data_is_said_once(mistakes: Any) -> None:
    [problem] = mistakes("text_sft", path="nowhere.jsonl", data={"validation_fraction": 0.1})
    assert problem.startswith("data.train.datasets.0.dataset_path: there is no such file or folder")


def test_a_strategy_without_proportions_is_not_passed_over(mistakes: Any, tmp_path: Path) -> None:
    one = {"dataset_name": "text_sft", "dataset_path": str(tmp_path / "rows.jsonl")}
    both = {"datasets": [one, one], "mixture_strategy": "all_exhausted"}
    [problem] = mistakes("text_sft", train=both)
    assert problem.startswith(
        "data.train.mixture_strategy: has a meaning only with proportions: without them every row"
    )
    shares = [{**one, "mixture_proportion": share} for share in (0.25, 0.75)]
    assert mistakes("text_sft", train={**both, "datasets": shares}) == []


def test_images_can_be_read_and_not_trained_on(mistakes: Any) -> None:
    if any("image-chat" in trainer.schemas for trainer in get_registry().trainers.values()):
        pytest.skip("a plugin is installed that trains on images")
    said = "no installed plugin has a trainer for image-chat rows yet, which can only be read"
    assert any(said in problem for problem in mistakes("vl_sft_jsonl", dataset_kwargs={"processor_name": "org/model"}))
