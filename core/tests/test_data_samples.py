"""Rows to samples: shapes of conversations, the trained mask, the policies for what is too long."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from graftwork.chat import encode_chat
from graftwork.config import DatasetSplitParams
from graftwork.data.account import Account
from graftwork.data.blocks import Packer
from graftwork.data.conversations import to_conversation
from graftwork.data.prepare import prepare_chunk
from graftwork.data.readers import FileSource, Row
from graftwork.data.samples import Sample, chat_encoder, text_encoder, windows
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from graftwork.data.samples import Encode

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '<' + message['role'] + '>' + message['content'] + '\n' }}{% endif %}{% endfor %}"
)


def make_tokenizer(**special: str) -> Any:
    """A token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>", "<begin>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **special)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(eos_token="<end>")


def row(**data: Any) -> Row:
    return Row(data, "rows.jsonl:7", (0, 1))


def turns(data: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message.role.value, message.text) for message in to_conversation(row(**data)).messages]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            [("user", "Q"), ("assistant", "A")],
        ),
        ({"instruction": "Q", "output": "A"}, [("user", "Q"), ("assistant", "A")]),
        ({"instruction": "Q", "input": "", "output": "A"}, [("user", "Q"), ("assistant", "A")]),
        ({"instruction": "Q", "input": "I", "output": "A", "id": 3}, [("user", "Q\n\nI"), ("assistant", "A")]),
        ({"prompt": "Q", "completion": "A"}, [("user", "Q"), ("assistant", "A")]),
        ({"prompt": "Q", "response": "A"}, [("user", "Q"), ("assistant", "A")]),
        ({"question": "Q", "answer": "A"}, [("user", "Q"), ("assistant", "A")]),
    ],
)
def test_shapes_of_conversations(data: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(data) == expected


def test_another_field_holds_the_turns() -> None:
    data = {"dialog": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    assert len(to_conversation(row(**data), "dialog").messages) == 2
    with pytest.raises(DataError, match=r"rows\.jsonl:7: fields dialog are no known row; expected one of: messages; "):
        to_conversation(row(**data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"rows\.jsonl:7: fields none are no known row; expected one of: messages; conversations \(ShareGPT"),
        ({"messages": "text"}, r"rows\.jsonl:7: messages: Input should be a valid list \(got 'text'\)"),
        ({"messages": []}, r"rows\.jsonl:7: no turn has the role assistant, so there is nothing to learn; remove"),
        ({"messages": [{"role": "user", "content": "Q"}]}, r"no turn has the role assistant"),
        (
            {"messages": [{"role": "bot", "content": "Q"}]},
            r"rows\.jsonl:7: messages\.0\.role: Input should be .*'user'",
        ),
        ({"messages": [{"role": "user"}]}, r"rows\.jsonl:7: messages\.0\.content: Field required"),
        (
            {"messages": [{"role": "assistant", "content": None}]},
            r"rows\.jsonl:7: messages\.0: .*content is null, and there are no tool_calls: give one of them",
        ),
        ({"instruction": 3, "output": "A"}, r"rows\.jsonl:7: instruction is int 3, not a text"),
        ({"instruction": "Q", "output": None}, r"rows\.jsonl:7: output is NoneType None, not a text"),
        ({"instruction": "Q", "input": ["I"], "output": "A"}, r"rows\.jsonl:7: input is list \['I'\], not a text"),
    ],
)
def test_rows_that_are_no_conversation(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_conversation(row(**data))


def test_a_document_ends_in_eos_and_is_learned_whole(tokenizer: Any) -> None:
    sample = text_encoder(tokenizer, "text")(row(text="hä?"))
    assert tokenizer.decode(sample.input_ids) == "hä?<end>"
    assert sample.trained.all()
    assert (sample.where, len(sample)) == ("rows.jsonl:7", 5)


def test_a_tokenizer_that_writes_bos_begins_a_document_with_it() -> None:
    from tokenizers.processors import TemplateProcessing

    writes = make_tokenizer(eos_token="<end>", bos_token="<begin>")
    writes.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", writes.bos_token_id)]
    )
    assert writes.decode(text_encoder(writes, "text")(row(text="x")).input_ids) == "<begin>x<end>"
    silent = make_tokenizer(eos_token="<end>", bos_token="<begin>")
    assert silent.decode(text_encoder(silent, "text")(row(text="x")).input_ids) == "x<end>"


def test_documents_that_cannot_be_read(tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: no text in field 'text'; fields: body; set dataset_kwargs\.text"
    ):
        text_encoder(tokenizer, "text")(row(body="x"))
    with pytest.raises(DataError, match=r"rows\.jsonl:7: no text in field 'text'"):
        text_encoder(tokenizer, "text")(row(text=None))
    with pytest.raises(DataError, match=r"has no EOS token to end a document with; set model\.tokenizer_kwargs"):
        text_encoder(make_tokenizer(), "text")


@pytest.mark.parametrize("target", ["all_assistant_turns", "final_assistant_turn"])
def test_only_the_assistant_is_learned(tokenizer: Any, target: str) -> None:
    """Against transformers' own mask of the template's generation blocks."""
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three?"},
        {"role": "assistant", "content": "four"},
    ]
    split = DatasetSplitParams(train_target=target)
    sample = chat_encoder(tokenizer, split, None, frozenset({tokenizer.eos_token_id}), {})(row(messages=messages))
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert sample.input_ids.tolist() == theirs["input_ids"]
    learned = tokenizer.decode(sample.input_ids[sample.trained])
    if target == "all_assistant_turns":
        assert sample.trained.astype(int).tolist() == theirs["assistant_masks"]
        assert learned == "two<end>four<end>"
    else:
        assert learned == "four<end>"


def test_a_turn_without_a_stop_names_its_row(tokenizer: Any) -> None:
    encode = chat_encoder(tokenizer, DatasetSplitParams(), None, frozenset({5}), {})
    with pytest.raises(DataError) as caught:
        encode(row(question="Q", answer="A"))
    said = (
        f"rows.jsonl:7: a trained assistant turn ends in the token {tokenizer.eos_token_id} '<end>', which is no stop"
    )
    assert str(caught.value).startswith(
        f"{said} token (5 {tokenizer.decode([5])!r}): the model would not learn to stop"
    )


@pytest.mark.parametrize("policy", ["error", "as_text", "allow"])
def test_control_tokens_in_a_row(tokenizer: Any, policy: str) -> None:
    encode = chat_encoder(tokenizer, DatasetSplitParams(), None, frozenset({tokenizer.eos_token_id}), {}, policy)
    bad = row(question="Q<end>?", answer="A")
    if policy == "error":
        with pytest.raises(
            DataError, match=r"^rows\.jsonl:7: message number 1 \(user\) holds <end>, which the tokenizer"
        ):
            encode(bad)
        return
    sample = encode(bad)
    assert tokenizer.decode(sample.input_ids) == "<user>Q<end>?\nA<end>"
    assert (sample.input_ids == tokenizer.eos_token_id).sum() == (1 if policy == "as_text" else 2)
    assert tokenizer.decode(sample.input_ids[sample.trained]) == "A<end>"


def test_calls_of_tools_and_the_tools_of_a_row() -> None:
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
        "{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.tool_calls | tojson if m.tool_calls else m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ m.role + (m.name or '') + (m.tool_call_id or '') + ':' + m.content }}{% endif %}{% endfor %}"
    )
    able = make_tokenizer(eos_token="<end>")
    able.chat_template = template
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "1 + 2?"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": "add", "tool_call_id": "c1", "content": "3"},
        {"role": "assistant", "content": "It is 3"},
    ]
    for tools in ([{"name": "add"}], '[{"name": "add"}]'):
        encode = chat_encoder(able, DatasetSplitParams(), None, frozenset({able.eos_token_id}), {})
        sample = encode(row(messages=messages, tools=tools))
        assert able.decode(sample.input_ids) == (
            f'[{{"name": "add"}}]user:1 + 2?[{json.dumps(call)}]<end>tooladdc1:3It is 3<end>'
        )
        assert able.decode(sample.input_ids[sample.trained]) == f"[{json.dumps(call)}]<end>It is 3<end>"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            {"tools": [{"name": "add"}]},
            r"has no place for the tools of the conversation, .*\. Templates that support tools: llama3\.1, llama3\.",
        ),
        ({"tools": "[{"}, r"rows\.jsonl:7: tools is a text that is not JSON: '\[\{'"),
        ({"tools": {"name": "add"}}, r"rows\.jsonl:7: tools is no list of objects but \{'name'"),
    ],
)
def test_tools_that_would_be_left_out(tokenizer: Any, data: dict[str, Any], reason: str) -> None:
    encode = chat_encoder(tokenizer, DatasetSplitParams(), None, frozenset({tokenizer.eos_token_id}), {})
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    with pytest.raises(DataError, match=reason):
        encode(row(messages=messages, **data))


def sample_of(length: int, first_trained: int = 0, where: str = "rows.jsonl:7") -> Sample:
    return Sample(np.arange(length, dtype=np.int32), np.arange(length) >= first_trained, where)


SAID = [(role, f"{role[0]}{number}") for number, role in enumerate(("user", "assistant", "user", "assistant") * 2)]
UNMARKED = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
MACRO = f"{{% macro turns(messages) %}}{TEMPLATE}{{% endmacro %}}{{{{ turns(messages) }}}}"
COUNTED = TEMPLATE.replace(
    "{% for message in messages %}", "{% for number in range(messages | length) %}{% set message = messages[number] %}"
)


def weighed(weights: Sequence[int | None]) -> list[dict[str, Any]]:
    """A conversation whose answers have these weights."""
    left = iter(weights)
    messages = [{"role": role, "content": said} for role, said in SAID]
    return [{**turn, "weight": next(left)} if turn["role"] == "assistant" else turn for turn in messages]


def turns_of_transformers(able: Any) -> list[list[int]]:
    """The places of each answer's tokens by transformers' own mask of the assistant's tokens."""
    plain = [{"role": role, "content": said} for role, said in SAID]
    mask = able.apply_chat_template(
        plain, chat_template=TEMPLATE, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )["assistant_masks"]
    places = [place for place, trained in enumerate(mask) if trained]
    begins = [number for number, place in enumerate(places) if number == 0 or places[number - 1] != place - 1]
    return [places[begin:end] for begin, end in zip(begins, [*begins[1:], len(places)], strict=True)]


@pytest.mark.parametrize("template", [TEMPLATE, UNMARKED, MACRO], ids=["marked", "by prefixes", "macro"])
@pytest.mark.parametrize("target", ["all_assistant_turns", "final_assistant_turn"])
@pytest.mark.parametrize("weights", [(1, 0, 1, None), (0, 1, 0, 1), (None, 1, 1, 0), (0, 0, 0, 0), (1, 1, 1, 1)])
def test_an_answer_of_weight_0_is_not_learned(template: str, target: str, weights: Sequence[int | None]) -> None:
    able = make_tokenizer(eos_token="<end>")
    able.chat_template = template
    encode = chat_encoder(able, DatasetSplitParams(train_target=target), None, frozenset({able.eos_token_id}), {})
    plain = encode(row(messages=weighed([None] * 4)))
    turns = turns_of_transformers(able)
    wanted = [one for one, weight in zip(turns, weights, strict=True) if weight != 0]
    if target == "final_assistant_turn":
        wanted = [one for one in wanted if one == turns[-1]]
    for _ in range(2):  # the second time there is a mould for the roles
        sample = encode(row(messages=weighed(weights)))
        assert sample.input_ids.tolist() == plain.input_ids.tolist(), "weights are not the template's"
        assert np.flatnonzero(sample.trained).tolist() == [place for one in wanted for place in one]


def test_answers_side_by_side_have_their_own_weights(tokenizer: Any) -> None:
    encode = chat_encoder(tokenizer, DatasetSplitParams(), None, frozenset({tokenizer.eos_token_id}), {})
    answers = [{"role": "assistant", "content": f"A{number}", "weight": number % 2} for number in range(4)]
    sample = encode(row(messages=[{"role": "user", "content": "Q"}, *answers]))
    assert tokenizer.decode(sample.input_ids[sample.trained]) == "A1<end>A3<end>"


def test_a_template_that_does_not_tell_whose_answer_it_writes_takes_no_weights() -> None:
    able = make_tokenizer(eos_token="<end>")
    able.chat_template = COUNTED
    encode = chat_encoder(able, DatasetSplitParams(), None, frozenset({able.eos_token_id}), {})
    assert encode(row(messages=weighed([1] * 4))).trained.any()
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: chat template .* does not loop over the .* weight cannot be obeyed; take"
    ):
        encode(row(messages=weighed([1, 0, 1, 1])))


def test_weights_of_plain_messages(tokenizer: Any) -> None:
    ids, trained = encode_chat(weighed([0, 1, 0, 0]), tokenizer=tokenizer)
    learned = [index for index, is_trained in zip(ids, trained, strict=True) if is_trained]
    assert tokenizer.decode(learned) == "a3<end>"
    with pytest.raises(DataError, match=r"the weight of message number 4 is 2; it is 0 \(not trained\) or 1"):
        encode_chat(weighed([0, 2, 0, 0]), tokenizer=tokenizer)


def test_documents_are_cut_into_windows() -> None:
    pieces = windows(sample_of(9), 4)
    assert [piece.input_ids.tolist() for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def source_of(count: int) -> FileSource:
    class Rows(FileSource):
        def rows(self, start: Any = None) -> Any:
            return iter([Row({"n": number}, f"rows.jsonl:{number + 1}", (0, number)) for number in range(count)])

    from pathlib import Path

    return Rows((Path("rows.jsonl"),), None)  # type: ignore[arg-type]


def read_samples(source: FileSource, encode: Encode, max_length: int | None, over_long: str) -> Sequence[Sample]:
    """All rows as one chunk, judged."""
    made = prepare_chunk(list(source.rows()), encode, Account("rows.jsonl"), max_length, over_long)
    made.account.close()
    return made.samples


def test_every_bad_row_is_reported_at_once() -> None:
    def encode(one: Row) -> Sample:
        if one.data["n"] % 2:
            raise DataError(f"{one.where}: odd")
        return sample_of(3 + one.data["n"], where=one.where)

    with pytest.raises(DataError) as caught:
        read_samples(source_of(30), encode, 100, "error")
    assert str(caught.value) == "15 of 30 rows cannot be used:\n  rows.jsonl: rows 2, 4, 6 and 12 more: odd"
    with pytest.raises(DataError, match=r"^1 of 2 rows cannot be used:\n  rows\.jsonl:2: odd$"):
        read_samples(source_of(2), encode, 100, "error")


def test_causes_are_told_apart_and_listed_up_to_ten() -> None:
    def encode(one: Row) -> Sample:
        number = one.data["n"]
        raise DataError(
            f"{one.where}: " + ("odd" if number % 2 else f"{number} tokens" if number < 6 else "x" * number)
        )

    with pytest.raises(DataError) as caught:
        read_samples(source_of(30), encode, 100, "error")
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        "30 of 30 rows cannot be used:",
        "  rows.jsonl: rows 1, 3 and 5, the first of them: 0 tokens",
        "  rows.jsonl: rows 2, 4, 6 and 12 more: odd",
    ]
    assert lines[3] == "  rows.jsonl:7: xxxxxx"
    assert lines[11:] == ["  ... and 4 more causes"]


def test_rows_that_were_dropped_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    def encode(one: Row) -> Sample:
        return sample_of(3 + one.data["n"], where=one.where)

    with caplog.at_level(logging.WARNING, "graftwork"):
        assert len(read_samples(source_of(6), encode, 5, "drop")) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "rows.jsonl: 6 rows read, 3 used, 3 dropped",
        "  dropped: rows.jsonl: rows 4, 5 and 6, the first of them: too long: 6 tokens, but a sample may have 5",
    ]
    with pytest.raises(
        DataError, match=r"rows\.jsonl: none of its 6 rows can be used: .* there is nothing to train on"
    ):
        read_samples(source_of(6), encode, 2, "drop")
    with pytest.raises(DataError, match=r"rows\.jsonl: no rows in it; there is nothing to train on"):
        read_samples(source_of(0), encode, 5, "error")


def documents(seed: int) -> list[Sample]:
    generator = np.random.default_rng(seed)
    start, found = 0, []
    for number, length in enumerate(generator.integers(2, 30, 40)):
        ids = np.arange(start, start + length, dtype=np.int32)
        found.append(Sample(ids, generator.random(length) < 0.7, f"{number}"))
        found[-1].trained[-1] = True
        start += int(length)
    return found


def pack(packer: Packer, samples: list[Sample]) -> list[list[Sample]]:
    blocks = [block for sample in samples for block in packer.add(sample)]
    return [*blocks, *packer.flush()]


@pytest.mark.parametrize("seed", range(5))
def test_cut_documents_fill_every_block(seed: int) -> None:
    samples = documents(seed)
    blocks = pack(Packer(32, "cut", documents=True), samples)
    assert all(sum(map(len, block)) == 32 for block in blocks[:-1])
    assert sum(map(len, blocks[-1])) <= 32
    tokens = [int(token) for block in blocks for piece in block for token in piece.input_ids]
    total = sum(map(len, samples))
    # Every token once, in order; only a last one by itself, which teaches nothing, may be missing.
    assert tokens == list(range(total)) or (tokens == list(range(total - 1)) and total % 32 == 1)
    for block in blocks:
        for piece in block:
            assert piece.input_ids.tolist() == list(range(piece.input_ids[0], piece.input_ids[-1] + 1))


@pytest.mark.parametrize("seed", range(5))
def test_conversations_stay_whole(seed: int) -> None:
    samples = documents(seed)
    blocks = pack(Packer(32, "whole", documents=False), samples)
    assert [piece for block in blocks for piece in block] == samples
    sizes = [sum(map(len, block)) for block in blocks]
    assert max(sizes) <= 32
    # Nothing would have fitted where a block was closed.
    assert all(size + len(following[0]) > 32 for size, following in zip(sizes, blocks[1:], strict=False))


def test_without_packing_a_block_is_a_sample() -> None:
    samples = documents(0)
    assert pack(Packer(32, "none", documents=False), samples) == [[sample] for sample in samples]
    cut = pack(Packer(8, "none", documents=True), samples)
    assert max(len(piece) for [piece] in cut) == 8


def test_what_waits_for_its_block_is_kept() -> None:
    samples = documents(1)
    straight = pack(Packer(32, "cut", documents=True), samples)
    packer, blocks = Packer(32, "cut", documents=True), []
    for sample in samples:
        state = packer.state_dict()
        packer = Packer(32, "cut", documents=True)
        packer.load_state_dict(state)
        blocks += list(packer.add(sample))
    blocks += list(packer.flush())
    assert plain(blocks) == plain(straight)


def plain(blocks: list[list[Sample]]) -> list[list[list[int]]]:
    return [[piece.input_ids.tolist() for piece in block] for block in blocks]


def test_nothing_to_learn_is_no_block(tmp_path: Path) -> None:
    packer = Packer(4, "cut", documents=True)
    assert plain([*packer.add(sample_of(5)), *packer.flush()]) == [[[0, 1, 2, 3]]]
    assert list(packer.add(sample_of(1))) == []
    assert packer.is_empty
