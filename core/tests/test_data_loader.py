"""A split of the configuration to a loader."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from graftwork.config import DatasetSplitParams
from graftwork.data.indexed import IndexedLoader
from graftwork.data.loader import (
    LoadRequest,
    describe,
    fingerprint,
    hash_ends,
    load_indexed,
    load_split,
    schema_of,
)
from graftwork.data.streaming import StreamedLoader
from graftwork.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    template = (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '?' }}{% endif %}{% endfor %}"
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=template)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = [{"text": letter * length} for letter, length in (("a", 3), ("b", 30), ("c", 8), ("d", 1))]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = [{"prompt": letter, "completion": letter * length} for letter, length in (("x", 3), ("y", 12), ("z", 5))]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    return tmp_path


def request(tokenizer: Any, split: DatasetSplitParams, max_length: int = 10, **fields: Any) -> LoadRequest:
    stop = frozenset({tokenizer.eos_token_id})
    values = {"seed": 1, "batch_size": 1, **fields}
    return LoadRequest(split=split, tokenizer=tokenizer, max_length=max_length, stop_ids=stop, **values)


def split_of(files: Path, name: str, **fields: Any) -> DatasetSplitParams:
    reader = {"text": "text", "chat": "text_sft"}[name]
    return DatasetSplitParams(
        datasets=[{"dataset_name": reader, "dataset_path": str(files / f"{name}.jsonl")}], **fields
    )


def texts(tokenizer: Any, loader: Any, count: int = 100) -> list[list[str]]:
    """Each row's samples, as text."""
    rows = loader.rows() if isinstance(loader, IndexedLoader) else (row for step in loader.steps() for row in step)
    return [
        [tokenizer.decode(ids) for ids in row.input_ids[0].split(row.segment_lengths)] for row in islice(rows, count)
    ]


def test_documents_as_windows(tokenizer: Any, files: Path) -> None:
    loader = load_split(request(tokenizer, split_of(files, "text")))
    assert texts(tokenizer, loader) == [
        ["aaa<end>"], ["b" * 10], ["b" * 10], ["b" * 10], ["c" * 8 + "<end>"], ["d<end>"],
    ]  # fmt: skip
    known = describe(loader)
    [account] = known.pop("datasets")
    assert known == {"samples": 4, "tokens": 4 + 31 + 9 + 2, "supervised_tokens": 3 + 30 + 8 + 1}
    assert (account["name"], account["read"], account["used"]) == (str(files / "text.jsonl"), 4, 4)


@pytest.mark.parametrize("stream", [False, True])
def test_documents_packed(tokenizer: Any, files: Path, stream: bool) -> None:
    loader = load_split(request(tokenizer, split_of(files, "text", pack=True, stream=stream)))
    expected = [["aaa<end>", "b" * 6], ["b" * 10], ["b" * 10], ["b" * 4 + "<end>", "c" * 5], ["ccc<end>", "d<end>"]]
    found = texts(tokenizer, loader, 5)
    assert found[:4] == expected[:4]
    # In memory the epoch ends there; a stream goes on with the next one.
    assert found[4] == (expected[4] + ["aaa<end>"] if stream else expected[4])


@pytest.mark.parametrize("stream", [False, True])
def test_conversations_packed_whole(tokenizer: Any, files: Path, stream: bool) -> None:
    loader = load_split(request(tokenizer, split_of(files, "chat", pack=True, stream=stream), 15))
    expected = [["x?xxx<end>"], ["y?" + "y" * 12 + "<end>"], ["z?zzzzz<end>"]]
    if stream:
        expected[2] = ["z?zzzzz<end>", "x?xxx<end>"]
    assert texts(tokenizer, loader, 3) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_too_long(tokenizer: Any, files: Path, stream: bool) -> None:
    def load(policy: str) -> Any:
        return load_split(request(tokenizer, split_of(files, "chat", stream=stream, over_long=policy)))

    with pytest.raises(DataError, match=r"chat\.jsonl:2: 15 tokens, but a sample may have 10"):
        texts(tokenizer, load("error"), 3)
    assert texts(tokenizer, load("drop"), 2) == [["x?xxx<end>"], ["z?zzzzz<end>"]]
    assert texts(tokenizer, load("truncate"), 2)[1] == ["y?" + "y" * 8]


def test_what_is_streamed_and_what_is_not(tokenizer: Any, files: Path) -> None:
    one = {"dataset_name": "text", "dataset_path": str(files / "text.jsonl")}
    both = DatasetSplitParams(datasets=[{**one, "stream": True}, {**one, "stream": True}])
    loader = load_split(request(tokenizer, both))
    assert isinstance(loader, StreamedLoader)
    next(loader.steps())
    assert [account["read"] for account in describe(loader)["datasets"]] == [1, 0]
    half = DatasetSplitParams(datasets=[{**one, "stream": True}, one])
    with pytest.raises(
        DataError, match=r"some datasets of the split are streamed and some are not; set stream for the"
    ):
        load_split(request(tokenizer, half))
    # An evaluation has to end, whatever its split says.
    assert isinstance(load_indexed(request(tokenizer, both)), IndexedLoader)


def test_a_split_holds_one_kind(files: Path) -> None:
    mixed = DatasetSplitParams(datasets=[{"dataset_name": "text"}, {"dataset_name": "text_sft"}])
    with pytest.raises(DataError, match=r"a split mixes schemas: text \(text\), text_sft \(chat\); train on them one"):
        schema_of(mixed)


def test_fingerprints(files: Path) -> None:
    path = files / "text.jsonl"
    whole = fingerprint(split_of(files, "text"))
    assert whole == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    ends = fingerprint(split_of(files, "text", stream=True))
    assert ends == {str(path): hash_ends(path)}
    path.write_bytes(path.read_bytes() + b"\n")
    assert fingerprint(split_of(files, "text")) != whole
    assert fingerprint(split_of(files, "text", stream=True)) != ends


@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_change_at_either_end_of_a_large_file_is_seen(tmp_path: Path, place: int) -> None:
    path = tmp_path / "large"
    data = bytearray(b"x" * 100)
    path.write_bytes(data)
    before = hash_ends(path, piece=10)
    data[place] = ord("y")
    path.write_bytes(data)
    assert hash_ends(path, piece=10) != before
