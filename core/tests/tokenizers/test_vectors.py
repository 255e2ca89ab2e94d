"""Every public vector, by every implementation that reads its file, and by its ``.hf``."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from graftwork import Tokenizer, load_tokenizer

ROOT = Path(os.environ.get("GRAFTWORK_TEST_DATA", "/nowhere"))
IMPLEMENTATIONS = {
    "llama2": ("sentencepiece", "hf"),
    "llama3": ("tiktoken", "hf"),
    "gemma": ("hf",),
    "phi3": ("hf",),
    "qwen2": ("hf",),
}


def cases() -> list[Any]:
    rows = [
        json.loads(line)
        for name in IMPLEMENTATIONS
        for file in (ROOT / "vectors/tokenizer").glob(f"{name}.jsonl")
        for line in file.read_text("utf-8").splitlines()
    ]
    return [
        pytest.param(row, impl, id=f"{impl}-{row['id']}") for row in rows for impl in IMPLEMENTATIONS[row["tokenizer"]]
    ]


@cache
def loaded(file: str, impl: str) -> Tokenizer:
    return load_tokenizer(ROOT / file, impl=impl)


@pytest.mark.skipif(not ROOT.is_dir(), reason="GRAFTWORK_TEST_DATA is not set: the vectors are not here")
@pytest.mark.parametrize(("row", "impl"), cases())
def test_a_public_vector(row: dict[str, Any], impl: str) -> None:
    tokenizer = loaded(row["tokenizer_file"], impl)
    encoder = tokenizer.create_encoder(mode="prompt" if row["bos_added"] else "as_is")
    assert encoder.ids(row["text"]) == row["ids"]
    assert encoder(row["text"]).tolist() == row["ids"]
    plain = row["ids"][1:] if row["bos_added"] else row["ids"]
    assert tokenizer.hf(row["text"], add_special_tokens=False)["input_ids"] == plain
    if "decoded" in row:
        assert tokenizer.create_decoder()(row["ids"]) == row["decoded"]
        assert tokenizer.hf.decode(row["ids"]) == row["decoded"]


@pytest.mark.skipif(not ROOT.is_dir(), reason="GRAFTWORK_TEST_DATA is not set: the vectors are not here")
@pytest.mark.parametrize("name", ["gemma", "phi3"])
def test_a_folder_is_what_its_tokenizer_json_is(name: str) -> None:
    folder, file = (load_tokenizer(ROOT / "tokenizers" / name / part) for part in ("", "tokenizer.json"))
    assert file.vocab_info == folder.vocab_info
    assert file.encode("two words") == folder.encode("two words")
    assert file.hf.all_special_tokens == folder.hf.all_special_tokens


@pytest.mark.skipif(not ROOT.is_dir(), reason="GRAFTWORK_TEST_DATA is not set: the vectors are not here")
def test_how_many_vectors_that_were() -> None:
    assert len(cases()) == 286  # 183 vectors, those of Llama 2 and 3 by two implementations
    assert {case.values[1] for case in cases()} == {"hf", "tiktoken", "sentencepiece"}
