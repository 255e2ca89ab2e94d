"""``graft preview data``: each token with its role, its place, and whether it is trained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from graftwork.check.preview import preview
from graftwork.config import load_config
from graftwork.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    WriteConfig = Callable[..., Path]
    Graft = Callable[..., tuple[int, str, str]]


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [chat("one two", "yes"), chat("three", "no"), chat("four", "perhaps")]


def test_roles_and_labels(write_config: WriteConfig) -> None:
    ((sample,), _) = preview(load_config(write_config(ROWS)), count=2)
    asked = len("<user>one two\n")
    assert [token.role for token in sample.tokens] == ["user"] * asked + ["assistant"] * 4
    assert [token.trained for token in sample.tokens] == [False] * asked + [True] * 4
    assert (sample.labels, sample.where.endswith("train.jsonl:1")) == (4, True)


def test_the_lines_in_a_pipe(write_config: WriteConfig, graft: Graft) -> None:
    code, out, _ = graft("preview", "data", "-c", write_config(ROWS), "--rows", "1")
    assert code == 0
    head, asked, answered = out.strip().splitlines()
    assert head.endswith("train.jsonl:1: 18 tokens, 4 labels")
    assert asked.split(maxsplit=2) == ["user", "0-13", "< u s e r > o n e · t w o \\n"]
    assert answered.split(maxsplit=3) == ["assistant", "+", "14-17", "y e s <end>"]


def test_packed_samples_are_shown_as_blocks(write_config: WriteConfig, graft: Graft) -> None:
    path = write_config(ROWS, data={"train": {"pack": True, "max_length": 40}})
    blocks = preview(load_config(path))
    assert [[sample.where.rpartition(":")[2] for sample in block] for block in blocks] == [["1", "2"], ["3"]]
    _, out, _ = graft("preview", "data", "-c", path)
    assert out.startswith("block 1: 2 samples, 33 tokens")


def test_of_a_block_no_more_samples_are_shown_than_asked_for(write_config: WriteConfig, graft: Graft) -> None:
    """Two rows of packed data were all 20 of the block, in 130 lines."""
    path = write_config(ROWS, data={"train": {"pack": True, "max_length": 40}})
    _, out, _ = graft("preview", "data", "-c", path, "--rows", "1")
    first, head, *_, last = out.strip().splitlines()
    assert (first, head.partition(": ")[0][-7:]) == ("block 1: 2 samples, 33 tokens", "jsonl:1")
    assert last == "... and 1 more in this block; --rows says how many to show"
    assert "jsonl:2" not in out
    _, out, _ = graft("preview", "data", "-c", path, "--rows", "2")
    assert "more in this block" not in out
    assert "jsonl:2" in out
    assert "jsonl:3" not in out


def test_json(write_config: WriteConfig, graft: Graft) -> None:
    _, out, _ = graft("preview", "data", "-c", write_config(ROWS), "--rows", "1", "--json")
    (((sample,)),) = json.loads(out)
    assert (sample["length"], sample["labels"], sample["parts"]) == (18, 4, None)
    assert sample["tokens"][-1] == {
        "id": sample["tokens"][-1]["id"],
        "text": "<end>",
        "role": "assistant",
        "trained": True,
    }


def test_preference_pairs(write_config: WriteConfig) -> None:
    rows = [{"prompt": "one", "chosen": "yes", "rejected": "no"}]
    path = write_config(rows)
    config = load_config(path, ["training.trainer_type=TOY"])
    config.data.train.datasets[0].dataset_name = "preference_pairs_jsonl"
    ((sample,),) = preview(config)
    asked = len("<user>one\n")
    assert sample.parts == (asked, 4, 3)
    assert [token.role for token in sample.tokens] == ["prompt"] * asked + ["chosen"] * 4 + ["rejected"] * 3


def test_documents_have_no_roles(write_config: WriteConfig) -> None:
    config = load_config(write_config([{"text": "a b"}]))
    config.data.train.datasets[0].dataset_name = "text"
    ((sample,),) = preview(config)
    assert {token.role for token in sample.tokens} == {None}
    assert all(token.trained for token in sample.tokens)


def test_what_cannot_be_shown(write_config: WriteConfig) -> None:
    config = load_config(write_config([{"nothing": 1}]))
    with pytest.raises(DataError, match=r"1 rows read, 0 used"):
        preview(config)
    with pytest.raises(UsageError, match=r"data.validation.datasets is empty: name a dataset there"):
        preview(config, "validation")
    with pytest.raises(UsageError, match=r"--split 'trian' is none: did you mean train"):
        preview(config, "trian")
