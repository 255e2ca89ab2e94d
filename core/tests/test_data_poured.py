"""Rows that need no look at each field: the samples and the errors of the way that looks at all of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graftwork.data.conversations import plain_turns, to_conversation
from graftwork.data.lengths import prepare
from graftwork.data.readers import Row
from graftwork.data.samples import ChatEncoder, text_encoder
from graftwork.errors import DataError

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['role'] + ':' + message['content'] | trim + '\n' }}{% endif %}{% endfor %}"
)
ASK = {"role": "user", "content": "What is it?"}
SAY = {"role": "assistant", "content": "Nothing."}
GOOD: list[dict[str, Any]] = [
    {"messages": [ASK, SAY]},
    {"messages": [{"role": "system", "content": "Be brief."}, ASK, SAY, ASK, SAY]},
    {"messages": [{"content": " turned round ", "role": "user"}, SAY], "id": 7, "source": None},
    {"prompt": "What?", "completion": "That."},
    {"instruction": "What?", "input": "this", "output": "That."},
    {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]},
]
ODD: list[dict[str, Any]] = [
    {},
    {"messages": None},
    {"messages": []},
    {"messages": "no"},
    {"messages": json.dumps([ASK, SAY])},
    {"messages": {"messages": [ASK, SAY]}},
    {"messages": [ASK]},
    {"messages": [SAY]},
    {"messages": ["a", SAY]},
    {"messages": [{"role": "user"}, SAY]},
    {"messages": [{**ASK, "name": "Ann"}, SAY]},
    {"messages": [{**ASK, "id": "1"}, SAY]},
    {"messages": [{**ASK, "weight": 1}, SAY]},
    {"messages": [{**ASK, "name": None}, SAY]},
    {"messages": [{"role": "human", "content": "a"}, SAY]},
    {"messages": [{"role": "developer", "content": "a"}, ASK, SAY]},
    {"messages": [{"role": "nobody", "content": "a"}, SAY]},
    {"messages": [{"role": None, "content": "a"}, SAY]},
    {"messages": [{"role": 1, "content": "a"}, SAY]},
    {"messages": [{"role": ["user"], "content": "a"}, SAY]},
    {"messages": [{"role": "user", "content": None}, SAY]},
    {"messages": [{"role": "user", "content": 1}, SAY]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, SAY]},
    {"messages": [{"role": "user", "content": "\ud800"}, SAY]},
    {"messages": [ASK, {"role": "tool", "content": "a"}, SAY]},
    {"messages": [ASK, {**SAY, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
    {"messages": [ASK, {"role": "assistant", "content": ""}]},
    {"messages": [ASK, {"role": "assistant", "content": " \n"}]},
    {"messages": [ASK, {"role": "assistant", "content": "a<end>b"}]},
    {"messages": [ASK, {"role": "assistant", "content": "word " * 300}]},
    {"messages": [ASK, SAY], "system": "Be brief."},
    {"messages": [ASK, SAY], "system": ""},
    {"messages": [ASK, SAY], "system": 1},
    {"messages": [ASK, SAY], "tools": []},
    {"messages": [ASK, SAY], "tools": "[]"},
    {"messages": [ASK, SAY], "tools": "no json"},
    {"messages": [ASK, SAY], "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"prompt": "What?", "completion": "That.", "tools": [{"name": "f", "parameters": {}}]},
]


class Poured:
    """Counts what came out of a mould."""

    def __init__(self, encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        poured = ChatEncoder.poured

        def counted(*arguments: Any) -> Any:
            sample = poured(*arguments)
            self.count += sample is not None
            return sample

        monkeypatch.setattr(ChatEncoder, "poured", counted)


@pytest.fixture
def encoder() -> ChatEncoder:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=TEMPLATE)
    return ChatEncoder(
        tokenizer=tokenizer,
        messages_field=None,
        train_target="all_assistant_turns",
        stop_ids=frozenset({tokenizer.eos_token_id}),
        variables={},
    )


def outcome(encode: Any, row: Row, over_long: str = "error") -> Any:
    found = prepare(row, encode, 200, over_long)
    sample = found.sample
    values = sample and (sample.input_ids.tolist(), sample.trained.tolist(), str(sample.input_ids.dtype), sample.where)
    return found.verdict, found.reason, values


def test_rows_come_out_as_they_do_one_by_one(encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(data, f"rows.jsonl:{number}", (0, 0)) for number, data in enumerate([*GOOD, *ODD])]
    expected = [outcome(lambda row: encoder.encode(row, encoder.conversation(row)), row) for row in rows]
    assert {verdict for verdict, _, _ in expected} == {"used", "rejected"}
    counter = Poured(encoder, monkeypatch)
    found = [outcome(encoder, row) for row in rows]
    assert found == expected
    assert counter.count >= len(GOOD)
    assert [outcome(encoder, row) for row in rows] == expected


@pytest.mark.parametrize("data", GOOD[:3])
def test_plain_turns_are_the_messages_of_the_conversation(data: dict[str, Any]) -> None:
    row = Row(data, "rows.jsonl:1", (0, 0))
    found = plain_turns(row)
    assert found is not None
    messages = to_conversation(row).messages
    assert [*zip(*found, strict=True)] == [(message.role, message.content) for message in messages]


def test_what_cannot_be_read_says_so(encoder: ChatEncoder) -> None:
    class Unread(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            raise DataError("rows.jsonl:1: no JSON")

    encoder.asked = True
    found = prepare(Row(Unread(), "rows.jsonl:1", (0, 0)), encoder, None, "error")
    assert (found.verdict, found.reason) == ("rejected", "no JSON")


def test_half_a_character_is_said(encoder: ChatEncoder) -> None:
    """JSON can write one, and no tokenizer takes it."""
    expected = (
        "has '\\ud800' behind 'user:ab': half of a surrogate pair, which is no character; mend the text, or leave"
    )
    row = Row({"messages": [{"role": "user", "content": "ab\ud800c"}, SAY]}, "rows.jsonl:1", (0, 0))
    assert expected in outcome(encoder, row)[1]
    text = Row({"text": "user:ab\ud800c"}, "rows.jsonl:1", (0, 0))
    verdict, reason, _ = outcome(text_encoder(encoder.tokenizer, "text"), text)
    assert verdict == "rejected"
    assert expected in reason


def test_what_is_too_long_is_cut_as_before(encoder: ChatEncoder) -> None:
    data = {"messages": [ASK, {"role": "assistant", "content": "word " * 300}]}
    row = Row(data, "rows.jsonl:1", (0, 0))
    first, second = (outcome(encoder, row, "truncate") for _ in range(2))
    assert first == second
    assert first[0] == "truncated"
