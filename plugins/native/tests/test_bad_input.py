"""What somebody gets wrong, through `graft train`: place and remedy, exit code 2, nothing left behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from graftwork.cli import main

if TYPE_CHECKING:
    from pathlib import Path

CHAT = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'


def write_config(toys: Any, tmp_path: Path, llama: Path, dataset: dict[str, Any], **split: Any) -> str:
    data = {"train": {"datasets": [{"dataset_name": "text_sft", **dataset}], **split}}
    config = toys.config(tmp_path, llama, data)
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml())
    return str(path)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert main(["train", *arguments]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "looks like a bug" not in said
    assert not (tmp_path / "run").exists(), "nothing half-written"
    return said


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CHAT + "{oops}\n", "rows.jsonl:2: not JSON: Expecting property name enclosed in double quotes (column 2)"),
        (CHAT.encode() + b"\xff\n", "rows.jsonl:2: not UTF-8 (byte 0: 0xff); convert the file"),
        ("\n" + CHAT + '{"messages": [{"role": "user", "content": "q"}]}\n', "rows.jsonl:3: no turn has the role"),
        (CHAT + '{"instruction": "q"}\n', "rows.jsonl:2: fields instruction are no known row; expected one of: mes"),
        (CHAT + CHAT.replace('"a"', f'"{"a" * 60}"'), "rows.jsonl:2: 69 tokens, but a sample may have 48"),
        ("", "no rows in"),
    ],
    ids=["no json", "no utf-8", "no assistant", "wrong fields", "too long", "empty"],
)  # fmt: skip
def test_rows(
    toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str, stream: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = write_config(toys, tmp_path, llama, {"dataset_path": str(path)}, max_length=48, stream=stream)
    if not stream:
        assert message in refused(tmp_path, capsys, "-c", config)
        return
    # A stream is read as the run goes on: the run began, and says why it ended.
    assert main(["train", "-c", config]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert message in record["error"]


@pytest.mark.parametrize(
    ("policy", "kept", "notice"),
    [("drop", 1, "2 rows read, 1 used, 1 dropped"), ("truncate", 2, "2 rows read, 2 used, 1 cut short")],
)
def test_policies_for_what_is_too_long(
    toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str], policy: str, kept: int, notice: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(CHAT + CHAT.replace('"a"', json.dumps("a" * 60)))
    config = write_config(toys, tmp_path, llama, {"dataset_path": str(path)}, max_length=48, over_long=policy)
    assert main(["train", "-c", config]) == 0
    assert notice in capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data_train"]["samples"] == kept


def test_files(toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = write_config(toys, tmp_path, llama, {"dataset_path": str(tmp_path / "nowhere.jsonl")})
    said = refused(tmp_path, capsys, "-c", missing)
    assert "dataset_path = " in said
    assert "nowhere.jsonl': there is no such file or folder" in said
    (tmp_path / "empty").mkdir()
    empty = write_config(toys, tmp_path, llama, {"dataset_path": str(tmp_path / "empty")})
    kinds = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow"
    assert f"has no file that ends in {kinds}; add one or name a file" in refused(tmp_path, capsys, "-c", empty)


def test_all_rows_at_once(toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(CHAT + '{"a": 1}\n' + CHAT + '{"prompt": 1, "completion": "x"}\n')
    said = refused(tmp_path, capsys, "-c", write_config(toys, tmp_path, llama, {"dataset_path": str(path)}))
    assert "2 of 4 rows cannot be used:" in said
    assert "rows.jsonl:2: fields a are no known row" in said
    assert "rows.jsonl:4: prompt is int 1, not a text" in said


def test_control_tokens_in_messages(toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    bad = CHAT.replace('"q"', '"q<end>"')
    path.write_text(CHAT + bad * 2 + CHAT + bad * 3)
    config = write_config(toys, tmp_path, llama, {"dataset_path": str(path)}, max_length=48)
    said = refused(tmp_path, capsys, "-c", config)
    assert "5 of 7 rows cannot be used:" in said
    assert "rows.jsonl: rows 2, 3, 5 and 2 more: message number 1 (user) holds <end>, which the tokenizer" in said
    assert "set special_tokens_in_content to as_text" in said
    # <end> is one token, or five letters.
    tokens = {}
    for policy in ("as_text", "allow"):
        output = ["--training.output_dir", str(tmp_path / policy)]
        assert main(["train", "-c", config, "--data.special_tokens_in_content", policy, *output]) == 0
        tokens[policy] = json.loads((tmp_path / policy / "run.json").read_text())["data_train"]["tokens"]
    assert tokens["as_text"] - tokens["allow"] == 5 * (len("<end>") - 1)


def test_text_in_another_field(toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "x"}\n')
    config = write_config(toys, tmp_path, llama, {"dataset_name": "text", "dataset_path": str(path)})
    said = refused(tmp_path, capsys, "-c", config)
    assert "rows.jsonl:1: no text in field 'text'; fields: body; set dataset_kwargs.text_field" in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.trainer_type=NATIVE_PRETRAIN", "NATIVE_PRETRAIN takes text; chat rows are for NATIVE, NATIVE_SFT"),
        ("training.mixed_precision_dtype=fp16", "fp16"),
        ("training.eval_strategy=steps", "there is nothing to evaluate on"),
    ],
)
def test_settings(
    toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    toys.chat(tmp_path / "rows.jsonl")
    config = write_config(toys, tmp_path, llama, {"dataset_path": str(tmp_path / "rows.jsonl")})
    assert message in refused(tmp_path, capsys, "-c", config, override)


def test_whole_modules_in_float32_need_mixed_products(
    toys: Any, tmp_path: Path, chat: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base = toys.save(tmp_path / "half", dtype=torch.bfloat16)
    training = {"use_peft": True, "max_steps": 1}
    config = toys.config(tmp_path, base, chat, training=training, peft={"lora_modules_to_save": ["embed_tokens"]})
    path = str(toys.save_config(tmp_path / "run.yaml", config))
    said = refused(tmp_path, capsys, "-c", path)
    assert "training.mixed_precision_dtype: none does not go with base_model.model.model.embed_tokens" in said
    assert "beside frozen weights in bfloat16; set it to bf16, or model.torch_dtype to float32" in said
    for remedy in ("training.mixed_precision_dtype=bf16", "model.torch_dtype=float32"):
        assert main(["train", "-c", path, remedy, f"training.output_dir={tmp_path / remedy}"]) == 0
