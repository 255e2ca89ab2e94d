"""Held-out rows: identical records on one side, whatever their place and spelling; and what both sides share."""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graftwork.config import DataParams
from graftwork.data.conversations import to_conversation
from graftwork.data.holdout import Part, report_shared
from graftwork.data.names import look_up
from graftwork.data.readers import OpenRequest, Row
from graftwork.data.samples import Sample

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA", "nowhere")) / "datasets"
real = pytest.mark.skipif(not DATA.is_dir(), reason="GRAFTWORK_TEST_DATA names no folder with datasets")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def data_of(path: Path, name: str = "text_sft", fraction: float = 0.2, **fields: Any) -> DataParams:
    train = {"datasets": [{"dataset_name": name, "dataset_path": str(path)}]}
    return DataParams(train=train, validation_fraction=fraction, **fields)


def rows_of(data: DataParams, split: str) -> list[Row]:
    [params] = data.splits()[split].datasets
    spec, options = look_up(params)
    return list(spec.open(OpenRequest(dataset=params, params=options)).rows())


def both(data: DataParams) -> tuple[list[Row], list[Row]]:
    return rows_of(data, "train"), rows_of(data, "validation")


def said(row: Row) -> str:
    return str([(message.role.value, message.text, message.tool_calls) for message in to_conversation(row).messages])


def shared(train: list[str], validation: list[str]) -> int:
    return sum(text in set(train) for text in validation)


@real
def test_a_real_set_that_repeats_records_leaks_by_position_and_not_here() -> None:
    """150 public tool conversations, 141 of them different."""
    path = DATA / "tools/glaive_toolcall_en_demo.0-149.json"
    train, validation = both(data_of(path))
    everything = [said(row) for row in (*train, *validation)]
    assert len(everything) == 150 and len(set(everything)) < 145
    assert 0.1 < len(validation) / 150 < 0.3
    assert shared([said(row) for row in train], [said(row) for row in validation]) == 0
    by_position = random.Random(0).sample(everything, 150)  # what datasets' train_test_split does
    assert shared(by_position[30:], by_position[:30]) > 0


@real
@pytest.mark.parametrize(
    ("file", "count"), [("instruct/alpaca_en_demo.0-499.json", 500), ("instruct/gsm8k_train.0-999.jsonl", 1000)]
)
def test_each_row_is_on_one_side_and_a_doubled_set_is_split_alike(tmp_path: Path, file: str, count: int) -> None:
    train, validation = both(data_of(DATA / file, fraction=0.1))
    assert len(train) + len(validation) == count
    assert len({row.where for row in (*train, *validation)}) == count
    assert len(validation) / count == pytest.approx(0.1, abs=0.05)
    rows = [dict(row.data) for row in (*train, *validation)]
    twice = write(tmp_path / "twice.jsonl", random.Random(1).sample([*rows, *rows], 2 * count))
    train2, validation2 = both(data_of(twice, fraction=0.1))
    assert Counter(map(said, validation2)) == {text: 2 * n for text, n in Counter(map(said, validation)).items()}
    assert shared([said(row) for row in train2], [said(row) for row in validation2]) == 0


ANSWER = {"role": "assistant", "content": "A"}


def test_records_are_identical_in_what_they_say(tmp_path: Path) -> None:
    """Not in their number, the order of their fields or the shape they are written in."""
    spellings = [
        lambda n: {"id": n, "prompt": f"Q{n}", "completion": "A"},
        lambda n: {"completion": "A", "prompt": f"Q{n}", "id": -n},
        lambda n: {"messages": [{"role": "user", "content": f"Q{n}"}, {"content": "A", "role": "assistant"}]},
        lambda n: {"conversations": [{"from": "human", "value": f"Q{n}"}, {"from": "gpt", "value": "A"}]},
    ]
    spellings.append(lambda n: {"messages": [{"role": "user", "content": f"Q{n}"}, {**ANSWER, "weight": 0}]})
    rows = [spell(number) for spell in spellings for number in range(40)]
    train, validation = both(data_of(write(tmp_path / "a.jsonl", rows), fraction=0.3))
    assert set(Counter(map(said, validation)).values()) == {5}
    assert shared([said(row) for row in train], [said(row) for row in validation]) == 0


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("text", lambda n: {"text": f"T{n}", "id": n}),
        ("preference_pairs", lambda n: {"id": random.random(), "prompt": f"Q{n}", "chosen": "A", "rejected": "B"}),
    ],
)  # fmt: skip
def test_documents_and_pairs(tmp_path: Path, name: str, row: Any) -> None:
    path = write(tmp_path / "a.jsonl", [row(number % 100) for number in range(300)])
    train, validation = both(data_of(path, name, 0.25))
    key = "text" if name == "text" else "prompt"
    counts = Counter(one.data[key] for one in validation)
    assert set(counts.values()) == {3}
    assert 15 < len(counts) < 35
    assert not counts.keys() & {one.data[key] for one in train}


def test_the_share_is_that_of_many_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": str(number)} for number in range(20_000)])
    assert len(rows_of(data_of(path, "text", 0.1), "validation")) == pytest.approx(2000, abs=4 * (20_000 * 0.09) ** 0.5)


def test_another_seed_holds_out_others_and_the_same_seed_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": str(n), "completion": "A"} for n in range(200)])
    first, again, other = (
        [row.where for row in rows_of(data_of(path, validation_seed=seed), "validation")] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_part_resumes_anywhere_and_bad_rows_are_told_once_in_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": str(n), "completion": "A"} for n in range(50)])
    path.write_text(path.read_text() + 'oops\n{"nothing": 1}\n')
    data = data_of(path)
    train, validation = both(data)
    assert [row.where.rpartition(":")[2] for row in train][-2:] == ["51", "52"]
    assert len(train) + len(validation) == 52
    for split, rows in (("train", train), ("validation", validation)):
        [params] = data.splits()[split].datasets
        spec, options = look_up(params)
        source = spec.open(OpenRequest(dataset=params, params=options))
        assert source.files == (path,)
        for index, row in enumerate(rows):
            assert [one.where for one in source.rows(row.after)] == [one.where for one in rows[index + 1 :]]


def test_the_validation_split_is_the_training_split_in_order(tmp_path: Path) -> None:
    one = {"dataset_name": "text_sft", "dataset_path": "a.jsonl", "shuffle": True, "sample_count": 5, "stream": True}
    train = {"datasets": [one], "max_length": 64, "pack": True, "over_long": "truncate", "stream": True}
    data = DataParams(train=train, validation={"max_length": 32}, validation_fraction=0.2)
    held_out = data.validation
    assert (held_out.max_length, held_out.over_long, held_out.pack, held_out.stream) == (32, "truncate", True, False)
    [dataset] = held_out.datasets
    assert (dataset.shuffle, dataset.sample_count, dataset.stream) == (False, None, False)
    assert (dataset.holdout, dataset.holdout_part, data.train.datasets[0].holdout_part) == (0.2, "validation", "train")
    assert DataParams(**data.model_dump()) == data, "what a run folder keeps is read as the same"


# Both sides given


def samples(*numbers: int, name: str) -> list[Sample]:
    return [
        Sample(np.asarray([number, 1], np.int32), np.ones(2, np.bool_), f"{name}.jsonl:{place}")
        for place, number in enumerate(numbers, 1)
    ]


def test_what_training_and_validation_share_is_said(caplog: pytest.LogCaptureFixture) -> None:
    train = [samples(1, 2, 3, name="a"), samples(7, 8, name="b")]
    with caplog.at_level(logging.WARNING, "graftwork"):
        assert report_shared(train, [samples(9, 8, 2, 2, name="v")]) == 3
        assert report_shared(train, [samples(4, 5, name="v")]) == 0
    [record] = caplog.records
    assert record.getMessage().splitlines() == [
        "3 of 4 validation samples are in the training data as well, so eval_loss is partly that of training; leave "
        "them out, or set data.validation_fraction instead of data.validation",
        "  v.jsonl:2: also in the training data (b.jsonl:2)",
        "  v.jsonl: rows 3 and 4: also in the training data (a.jsonl:2)",
    ]


def test_a_part_of_what_nothing_is_known_by_is_not_kept_by_the_cache() -> None:
    """A reader without files and revisions may give other rows at the next start."""
    [params] = data_of(Path("nowhere.jsonl")).train.datasets
    unknown: Any = SimpleNamespace(files=())
    named: Any = SimpleNamespace(files=(), revisions={"a/b": "c0ffee"})
    assert Part(unknown, params, lambda row: b"").revisions == {}
    part = "train beside 0.2 by seed 0"
    assert Part(named, params, lambda row: b"").revisions == {"a/b": "c0ffee", "nowhere.jsonl (holdout)": part}


def test_the_log_says_which_part_of_one_file_it_speaks_of(tmp_path: Path) -> None:
    from graftwork.data.loader import called

    data = data_of(path := write(tmp_path / "rows.jsonl", [{"messages": []}]))
    names = [called(data.splits()[split].datasets[0]) for split in ("train", "validation")]
    assert names == [str(path), f"{path} (held out)"]
