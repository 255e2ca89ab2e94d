"""What is too long: error, drop, truncate. No marker of a turn is ever cut, and every row is counted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftwork.config import DatasetSplitParams
from graftwork.data.account import Account, Outcome
from graftwork.data.lengths import prepare
from graftwork.data.readers import Row
from graftwork.data.samples import Sample, chat_encoder, text_encoder
from graftwork.errors import DataError

TOKENIZERS = Path(os.environ.get("GRAFTWORK_TEST_DATA", "nowhere")) / "tokenizers"

# Each with the text that opens a turn and the one that closes an answer, to be looked for in what was written.
HEADERS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
)
UNMARKED = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{% if m.role == 'assistant' %}### Answer:\n{% generation %}{{ m.content }}\n### End"
    "<|eot_id|>{% endgeneration %}\n{% else %}### {{ m.role }}:\n{{ m.content }}\n{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Wie heißt du?"},
    {"role": "assistant", "content": "Ich heiße Änne, größer als 日本語."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "assistant"},
    {"role": "user", "content": "End?"},
    {"role": "assistant", "content": "### Endless"},
    {"role": "user", "content": "a question that nobody answers"},
]


def bytes_tokenizer(template: str) -> Any:
    """A token for each byte, so that every marker but the control tokens is many tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eot_id|>", chat_template=template)


def tokenizer_of(name: str) -> tuple[Any, str]:
    """The tokenizer and what closes an answer."""
    if name == "phi":
        from transformers import PreTrainedTokenizerFast

        if not TOKENIZERS.is_dir():
            pytest.skip("GRAFTWORK_TEST_DATA names no folder with tokenizers")
        file = str(TOKENIZERS / "phi3" / "tokenizer.json")
        return PreTrainedTokenizerFast(tokenizer_file=file, eos_token="<|end|>", chat_template=PHI), "<|end|>"
    template = {"headers": HEADERS, "unmarked": UNMARKED, "plain": PLAIN}[name]
    return bytes_tokenizer(template), "\n### End<|eot_id|>" if name == "plain" else "<|eot_id|>"


def encoder_of(tokenizer: Any, target: str = "all_assistant_turns") -> Any:
    split = DatasetSplitParams(train_target=target)
    return chat_encoder(tokenizer, split, "messages", frozenset({tokenizer.eos_token_id}), {})


def row(messages: list[dict[str, Any]], **more: Any) -> Row:
    return Row({"messages": messages, **more}, "rows.jsonl:7", (0, 1))


def places_to_end(text: str, close: str) -> dict[int, str]:
    """Where a conversation may end: after each answer with its close, or in the text of the first answer."""
    found, start = {}, 0
    for number, answer in enumerate(turn["content"] for turn in TALK if turn["role"] == "assistant"):
        start = text.index(answer + close, start)
        if number == 0:
            found |= dict.fromkeys(range(start + 1, start + len(answer) + 1), "cut")
        start += len(answer + close)
        found[start] = "whole"
    return found


@pytest.mark.parametrize("target", ["all_assistant_turns", "final_assistant_turn"])
@pytest.mark.parametrize("name", ["headers", "unmarked", "plain", "phi"])
def test_no_marker_is_ever_cut(name: str, target: str) -> None:
    tokenizer, close = tokenizer_of(name)
    encode, one = encoder_of(tokenizer, target), row(TALK)
    whole = encode(one)
    text = tokenizer.decode(whole.input_ids)
    ends = places_to_end(text, close)
    last = -1
    for limit in range(1, len(whole)):
        outcome = prepare(one, encode, limit, "truncate")
        if outcome.verdict == "dropped":
            assert "its prompt of" in outcome.reason and "leaves no room for any of the answer" in outcome.reason
            assert last == -1, "what fits in fewer tokens fits in more"
            continue
        assert outcome.verdict == "truncated" and outcome.sample is not None and len(outcome.sample) <= limit
        kept = tokenizer.decode(outcome.sample.input_ids)
        assert text.startswith(kept), "the tokens are those of a shorter conversation"
        assert len(kept) in ends, f"{limit} tokens end in {kept[-20:]!r}"
        assert len(kept) >= last
        last = len(kept)
        learned = tokenizer.decode(outcome.sample.input_ids[outcome.sample.trained])
        answers = [turn["content"] for turn in TALK if turn["role"] == "assistant" and turn["content"] + close in kept]
        if ends[len(kept)] == "cut":
            assert not answers and learned and TALK[2]["content"].startswith(learned.strip())
            assert tokenizer.eos_token not in learned, "no end is learned that was not there"
        else:
            wanted = answers if target == "all_assistant_turns" else answers[-1:]
            # Phi's decoder writes a space where a text begins anew.
            assert learned.replace(" ", "") == "".join(answer + close for answer in wanted).replace(" ", "")
    assert ends[last] == "whole"
    assert last == max(ends), "the question that nobody answers is what is left out first"


def test_each_limit_keeps_as_much_as_fits() -> None:
    """With a token for each character the most that fits is known."""
    tokenizer, close = tokenizer_of("headers")
    talk = [{**turn, "content": turn["content"].encode("ascii", "replace").decode()} for turn in TALK]
    encode, one = encoder_of(tokenizer), row(talk)
    whole = encode(one)
    ends = {}
    for kept in range(1, len(whole) + 1):
        text = tokenizer.decode(whole.input_ids[:kept])
        answers = [turn["content"] for turn in talk if turn["role"] == "assistant"]
        if any(text.endswith(f"<|end_header_id|>\n\n{answer}{close}") for answer in answers):
            ends[kept] = "whole"
        opened = text.rpartition("assistant<|end_header_id|>\n\n")
        if opened[0] and "assistant<" not in opened[0] and opened[2] and answers[0].startswith(opened[2]):
            ends[kept] = "cut"
    for limit in range(1, len(whole)):
        sample = prepare(one, encode, limit, "truncate").sample
        most = max((kept for kept in ends if kept <= limit), default=0)
        assert (len(sample) if sample else 0) == most


def test_error_and_drop_say_how_long_it_is() -> None:
    tokenizer, _ = tokenizer_of("headers")
    encode, one = encoder_of(tokenizer), row(TALK)
    size = len(encode(one))
    assert prepare(one, encode, size, "error").verdict == "used"
    outcome = prepare(one, encode, 20, "error")
    assert (outcome.verdict, outcome.sample) == ("rejected", None)
    assert outcome.reason == (
        f"{size} tokens, but a sample may have 20; raise max_length, or set over_long: drop or truncate"
    )
    outcome = prepare(one, encode, 20, "drop")
    assert (outcome.verdict, outcome.reason) == ("dropped", f"too long: {size} tokens, but a sample may have 20")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [TALK[1], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "y" * 99}}]}],
            "its answer has no text of its own that could be cut",
        ),
        ([TALK[1], {"role": "assistant", "content": "shout " * 30}], "the chat template rewrites its answer"),
        ([{"role": "user", "content": "long " * 30}, TALK[2]], "leaves no room for any of the answer"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_dropped_with_its_reason(messages: list[dict[str, Any]], reason: str) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A{% generation %}"
        "{{ m.tool_calls | tojson if m.tool_calls else (m.content | upper if 'shout' in m.content else m.content) }}"
        "<|eot_id|>{% endgeneration %}{% else %}U{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer = bytes_tokenizer(template)
    outcome = prepare(row(messages), encoder_of(tokenizer), 40, "truncate")
    assert (outcome.verdict, outcome.sample) == ("dropped", None)
    assert outcome.reason.startswith("too long, and ")
    assert reason in outcome.reason
    assert outcome.reason.endswith("tokens, but a sample may have 40)")


def test_what_is_left_of_a_long_row_has_to_be_trained() -> None:
    """Of answers of weight 0 nothing is learned, whether they fit or would have to be cut."""
    encode = encoder_of(bytes_tokenizer(PLAIN))
    short, long = ({"role": "assistant", "content": "so " * count} for count in (2, 60))
    asked = {"role": "user", "content": "Q"}
    for first, reason in (
        ({**short, "weight": 0}, "too long, and no answer that fits is trained: "),
        ({**long, "weight": 0}, "too long, and its first answer, which would be cut, has weight 0 ("),
    ):
        found = prepare(row([asked, first, asked, long]), encode, 120, "truncate")
        assert (found.sample, found.verdict) == (None, "dropped")
        assert found.reason.startswith(reason)
    found = prepare(row([asked, short, asked, {**long, "weight": 0}]), encode, 120, "truncate")
    assert found.verdict == "truncated"
    found = prepare(row([asked, {**long, "weight": 0}]), encode, 1000, "truncate")
    assert (found.verdict, found.reason) == ("dropped", "nothing to learn: it is empty, or no token of it is trained")


def test_documents_have_no_limit_here_and_empty_ones_teach_nothing() -> None:
    encode = text_encoder(bytes_tokenizer(HEADERS), "text")
    assert prepare(Row({"text": "x" * 99}, "a:1", (0, 1)), encode, None, "error").verdict == "used"
    outcome = prepare(Row({"text": ""}, "a:2", (0, 2)), encode, None, "error")
    assert (outcome.verdict, outcome.reason) == (
        "dropped", "nothing to learn: it is empty, or no token of it is trained",
    )  # fmt: skip


def test_an_encoder_that_cannot_cut_drops() -> None:
    tokenizer = bytes_tokenizer(HEADERS)
    outcome = prepare(Row({"text": "xyz"}, "a:1", (0, 1)), text_encoder(tokenizer, "text"), 3, "truncate")
    assert outcome.reason == ("too long, and rows of this kind are not cut: 4 tokens, but a sample may have 3")


# Accounts


def outcome_of(number: int) -> Outcome:
    """Of ten rows two are rejected, one is dropped, one cut."""
    where = f"rows.jsonl:{number}"
    sample = Sample(np.arange(3, dtype=np.int32), np.ones(3, np.bool_), where)
    if number % 10 in (3, 7):
        return Outcome(where, None, "rejected", f"bad value {number}")
    if number % 10 == 5:
        return Outcome(where, None, "dropped", "too long")
    return Outcome(where, sample, "truncated", "too long") if number % 10 == 8 else Outcome(where, sample)


def account_of(count: int, max_rejected: float = 0) -> Account:
    account = Account("rows.jsonl", max_rejected)
    for number in range(1, count + 1):
        account.add(outcome_of(number))
    return account


def test_the_counts_add_up_and_are_said_with_places(caplog: pytest.LogCaptureFixture) -> None:
    account = account_of(1000, 200)
    with caplog.at_level("INFO", "graftwork"):
        account.close()
    assert [record.getMessage() for record in caplog.records] == [
        "rows.jsonl: 1,000 rows read, 700 used, 200 rejected, 100 dropped, 100 cut short",
        "  rejected: rows.jsonl: rows 3, 7, 13 and 197 more, the first of them: bad value 3",
        "  dropped: rows.jsonl: rows 5, 15, 25 and 97 more: too long",
        "  cut short: rows.jsonl: rows 8, 18, 28 and 97 more: too long",
    ]
    assert all(record.levelname == "WARNING" for record in caplog.records)
    caplog.clear()
    with caplog.at_level("INFO", "graftwork"):
        account_of(2).close()
    assert [record.getMessage() for record in caplog.records] == ["rows.jsonl: 2 rows read and used"]


@pytest.mark.parametrize(
    ("allowed", "read", "stops"),
    [(0, 2, False), (0, 3, True), (1, 6, False), (1, 7, True), (0.2, 100, False), (0.19, 100, True), (0.5, 7, False)],
)
def test_the_threshold_is_a_number_of_rows_or_a_share(allowed: float, read: int, stops: bool) -> None:
    account = account_of(read, allowed)
    if stops:
        with pytest.raises(DataError, match="bad value 3"):
            account.judge()
    else:
        account.judge()


def test_a_share_is_judged_early_only_when_there_are_enough_rows() -> None:
    account_of(7, 0.1).judge(complete=False)
    with pytest.raises(DataError, match=r"20 of 100 rows cannot be used:\n.*\n  more than max_rejected: 0\.1 allows"):
        account_of(100, 0.1).judge(complete=False)


def test_parts_merge_to_the_whole_and_survive_a_file() -> None:
    import json

    whole, first, second = account_of(100), account_of(30), Account("rows.jsonl")
    for number in range(31, 101):
        second.add(outcome_of(number))
    first.merge(second)
    assert first.to_plain() == whole.to_plain()
    again = Account("rows.jsonl")
    again.load_plain(json.loads(json.dumps(whole.to_plain())))
    assert again.to_plain() == whole.to_plain()
    again.add(outcome_of(103))
    assert sum(kind.rows for kind in again.rejected.values()) == 21


def test_an_account_does_not_grow_with_its_rows() -> None:
    account = Account("rows.jsonl", 10**9)
    for number in range(5000):
        letters = "".join(chr(97 + int(digit)) for digit in str(number))
        account.add(Outcome(f"rows.jsonl:{number}", None, "rejected", f"cause {letters}"))
    assert len(account.rejected) == 201
    assert sum(kind.rows for kind in account.rejected.values()) == account.read == 5000
    assert list(account.rejected.values())[-1].reason == "other reasons"


def test_nothing_to_use_is_said_with_its_reasons() -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl: no rows in it; there is nothing to train on$"):
        Account("rows.jsonl").close()
    account = Account("rows.jsonl")
    account.add(outcome_of(5))
    with pytest.raises(DataError, match=r"none of its 1 rows can be used: rows\.jsonl:5: too long; there is nothing"):
        account.close()


def test_what_a_template_refuses_for_one_cause_is_one_kind_whatever_the_roles() -> None:
    account = Account("rows", max_rejected=9)
    for number, roles in enumerate(("user assistant", "user tool assistant", "user assistant, and the tools")):
        reason = f"chat template 'x' refuses the conversation ({roles}): no tools (here)"
        account.add(Outcome(f"rows.jsonl:{number}", None, "rejected", reason))
    account.add(
        Outcome("rows.jsonl:3", None, "rejected", "chat template 'x' refuses the conversation (user): no images")
    )
    assert [str(kind) for kind in account.rejected.values()] == [
        "rows.jsonl: rows 0, 1 and 2, the first of them: chat template 'x' refuses the conversation (user assistant): "
        "no tools (here)",
        "rows.jsonl:3: chat template 'x' refuses the conversation (user): no images",
    ]
