"""Rows that are left out, held out, or on both sides, through `graft train`: what is said, and what run.json keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.cli import main

if TYPE_CHECKING:
    import pytest


def write_rows(path: Path, count: int, *, bad: int = 0) -> str:
    rows = [{"prompt": f"q{number}", "completion": "a"} for number in range(count)] + [{"prompt": "alone"}] * bad
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any], **training: Any) -> dict[str, Any]:
    path = tmp_path / "run.yaml"
    path.write_text(toys.config(tmp_path, llama, data, **training).to_yaml())
    assert main(["train", "-c", str(path)]) == 0
    record: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())
    return record


def test_rejected_rows_are_left_out_up_to_the_threshold(
    toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 8, bad=2)
    data = {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": rows}], "max_rejected": 0.2}}
    [account] = trained(toys, tmp_path, llama, data)["data_train"]["datasets"]
    assert (account["read"], account["used"]) == (10, 8)
    assert [(kind["rows"], kind["places"]) for kind in account["rejected"]] == [(2, [f"{rows}:9", f"{rows}:10"])]
    assert "rows 9 and 10: fields prompt are no known row" in capsys.readouterr().err


def test_a_share_is_held_out(toys: Any, tmp_path: Path, llama: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    train = {"datasets": [{"dataset_name": "text_sft", "dataset_path": rows}]}
    record = trained(toys, tmp_path, llama, {"train": train, "validation_fraction": 0.25})
    samples = [record[name]["samples"] for name in ("data_train", "data_validation")]
    assert sum(samples) == 40
    assert 4 <= samples[1] <= 18


def test_what_is_on_both_sides_is_said(
    toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, validation = write_rows(tmp_path / "train.jsonl", 8), write_rows(tmp_path / "validation.jsonl", 3)
    data = {
        "train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": train}]},
        "validation": {"datasets": [{"dataset_name": "text_sft", "dataset_path": validation}]},
    }
    trained(toys, tmp_path, llama, data)
    said = capsys.readouterr().err
    assert "3 of 3 validation samples are in the training data as well, so eval_loss is partly" in said
    assert f"validation.jsonl:1: also in the training data ({train}:1)" in said or "rows 1, 2 and 3" in said


def test_a_stream_is_accounted_for_at_the_end(
    toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start nothing of it was read."""
    rows = write_rows(tmp_path / "rows.jsonl", 8, bad=2)
    with Path(rows).open("a") as file:
        file.write(json.dumps({"prompt": "long " * 40, "completion": "a"}) + "\n")
    train = {"datasets": [{"dataset_name": "text_sft", "dataset_path": rows}], "stream": True}
    data = {"train": {**train, "max_rejected": 2, "max_length": 64, "over_long": "drop"}}
    [account] = trained(toys, tmp_path, llama, data, training={"max_steps": 8})["data_train"]["datasets"]
    assert (account["read"], account["used"], account["closed"]) == (11, 8, True)
    assert account["rejected"][0]["places"] == [f"{rows}:9", f"{rows}:10"]
    said = capsys.readouterr().out
    assert f"rows     {rows}: 11 rows read, 8 used, 2 rejected, 1 dropped" in said
