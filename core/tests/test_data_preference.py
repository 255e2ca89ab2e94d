"""Preference rows in each public shape; the sample of a pair; what is said of rows that are none."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from graftwork.config import DatasetSplitParams
from graftwork.data.batch import to_row
from graftwork.data.encoders import LoadRequest, encoder_for
from graftwork.data.lengths import TooLongError, prepare
from graftwork.data.names import Datasets
from graftwork.data.params import HubDatasetParams
from graftwork.data.preference import PairEncoder, joined, pair_encoder, to_pair
from graftwork.data.readers import Row
from graftwork.errors import DataError

USER = {"role": "user", "content": "2 + 2?"}
SYSTEM = {"role": "system", "content": "Be brief."}
RIGHT, WRONG = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'][0] + '>' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
)
CLOSED = TEMPLATE.replace("message['content'] + eos_token", "message['content'] + '</turn>\n' + eos_token")


def row(**data: Any) -> Row:
    return Row(data, "here:1", (0, 0))


def encoder(template: str = TEMPLATE) -> PairEncoder:
    """A token for each byte, and an end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=template)
    return pair_encoder(tokenizer, DatasetSplitParams(), frozenset({256}), {})


SHAPES: dict[str, dict[str, Any]] = {
    "Oumi, documented": {"messages": [USER], "chosen": {"messages": [RIGHT]}, "rejected": {"messages": [WRONG]}},
    "Oumi, as its code reads": {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]},
    "Oumi's code with whole answers": {"prompt": [USER], "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "2 + 2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "Alpaca": {"instruction": "2 + 2?", "input": "", "output": "4", "chosen": "4", "rejected": "5"},
    "TRL, explicit": {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]},
    "TRL, implicit": {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "TRL, explicit text": {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    "UltraFeedback, binarized": {
        "prompt": "2 + 2?",
        "prompt_id": "x",
        "chosen": [USER, RIGHT],
        "rejected": [USER, WRONG],
        "messages": [USER, RIGHT],
        "score_chosen": 9.0,
    },
    "HH": {
        "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4",
        "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5",
    },
    "OpenAI": {
        "input": {"messages": [USER], "tools": []},
        "preferred_output": [RIGHT],
        "non_preferred_output": [WRONG],
    },
    "paired answers of Stack Exchange": {"question": "2 + 2?", "response_j": "4", "response_k": "5"},
    "a query": {"query": "2 + 2?", "chosen": "4", "rejected": "5"},
    "an input": {"input": "2 + 2?", "chosen": "4", "rejected": "5"},
    "one message as an answer": {"messages": [USER], "chosen": RIGHT, "rejected": WRONG},
    "null fields of another shape": {
        "prompt": None,
        "messages": [USER],
        "chosen": "4",
        "rejected": "5",
        "system": None,
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_the_same_pair(name: str) -> None:
    pair = to_pair(row(**SHAPES[name]))
    assert [(m.role, m.content) for m in pair.prompt] == [("user", "2 + 2?")]
    assert [(m.role, m.content) for m in pair.chosen] == [("assistant", "4")]
    assert [(m.role, m.content) for m in pair.rejected] == [("assistant", "5")]


def test_the_system_text_tools_and_input_are_kept() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    pair = to_pair(row(system="Be brief.", question="2 + 2?", chosen="4", rejected="5", tools=tools))
    assert [m.content for m in pair.prompt] == ["Be brief.", "2 + 2?"]
    assert pair.tools == tools
    pair = to_pair(row(instruction="Add.", input="2, 2", chosen="4", rejected="5", history=[["Hi", "Hello"]]))
    assert [m.content for m in pair.prompt] == ["Hi", "Hello", "Add.\n\n2, 2"]


def test_what_a_question_is_about_is_in_the_prompt() -> None:
    for question in ("question", "prompt", "query", "input", "instruction"):
        pair = to_pair(row(**{question: "Q", "context": "C", "chosen": "4", "rejected": "5"}))
        assert [m.content for m in pair.prompt] == ["Q\n\nC"]
    with pytest.raises(
        DataError, match=r"here:1: question is what is asked, and the text in instruction would be lost"
    ):
        to_pair(row(instruction="Be brief.", question="2 + 2?", chosen="4", rejected="5"))


def test_the_field_of_the_prompt_may_be_named() -> None:
    both = row(messages=[USER], dialog=[SYSTEM, USER], chosen="4", rejected="5")
    assert [m.content for m in to_pair(both, "dialog").prompt] == ["Be brief.", "2 + 2?"]
    plain = encoder()
    options = HubDatasetParams(rows_are="preference", messages_field="dialog")
    request = LoadRequest(
        split=DatasetSplitParams(),
        tokenizer=plain.tokenizer,
        max_length=99,
        stop_ids=plain.stop_ids,
        seed=0,
        batch_size=1,
    )
    named = encoder_for(replace(Datasets()["huggingface"], schema="preference"), options, request)
    assert plain.tokenizer.decode(named(both).input_ids) == "<s>Be brief.\n" + plain.tokenizer.decode(
        plain(both).input_ids
    )


def test_a_system_text_stays_before_whole_conversations() -> None:
    whole = {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]}
    for data in (whole | {"system": "Be brief."}, whole | {"messages": [SYSTEM, USER]}):
        pair = to_pair(row(**data))
        assert [m.content for m in (*pair.prompt, *pair.chosen, *pair.rejected)] == ["Be brief.", "2 + 2?", "4", "5"]


def test_an_answer_of_weight_0_is_no_answer() -> None:
    earlier = {**RIGHT, "weight": 0}
    pair = to_pair(row(messages=[USER, earlier, USER], chosen=[{**RIGHT, "weight": 1}], rejected=[WRONG]))
    assert [message.weight for message in (*pair.prompt, *pair.chosen)] == [None, 0, None, 1]
    with pytest.raises(DataError, match=r"here:1: the answer in rejected has weight 0, and a pair is about"):
        to_pair(row(messages=[USER], chosen=[RIGHT], rejected=[{**WRONG, "weight": 0}]))


def test_an_answer_may_begin_with_another_question() -> None:
    more = {"role": "user", "content": "Sure?"}
    pair = to_pair(row(messages=[USER, RIGHT], chosen=[more, RIGHT], rejected=[more, WRONG]))
    assert [len(part) for part in (pair.prompt, pair.chosen, pair.rejected)] == [2, 2, 2]


def test_whole_conversations_share_what_is_the_same() -> None:
    later = {"role": "user", "content": "And 3 + 3?"}
    pair = to_pair(row(chosen=[SYSTEM, USER, RIGHT, later, WRONG], rejected=[SYSTEM, USER, RIGHT, later, RIGHT]))
    assert [m.content for m in pair.prompt] == ["Be brief.", "2 + 2?", "4", "And 3 + 3?"]
    pair = to_pair(row(chosen=[USER, RIGHT, later, WRONG], rejected=[USER, WRONG]))
    assert [len(part) for part in (pair.prompt, pair.chosen, pair.rejected)] == [1, 3, 1]
    pair = to_pair(row(chosen=[USER, RIGHT], rejected=[USER, RIGHT]))
    assert pair.chosen == pair.rejected, "answers that are the same are answers all the same"


def test_texts_that_begin_alike_have_a_prompt() -> None:
    pair = to_pair(row(chosen="The sky is blue.", rejected="The sky is green."))
    assert [m.content for m in (*pair.prompt, *pair.chosen, *pair.rejected)] == ["The sky is", " blue.", " green."]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"prompt": "a", "chosen": "b"},
            r"here:1: fields prompt, chosen are no preference row; expected one of: messages",
        ),
        (
            {"messages": [USER, RIGHT]},
            r"here:1: fields messages are conversations, not preference pairs; read them with dataset_name: text_sft, "
            r"and train on them with a trainer_type that learns from conversations \(",
        ),
        ({"text": "a"}, r"fields text are documents, not preference pairs; read them with dataset_name: text, and"),
        ({"chosen": "b", "rejected": "c"}, r"here:1: the answers have no prompt: .* begin differently"),
        ({"chosen": [RIGHT], "rejected": [WRONG]}, r"here:1: the answers have no prompt"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, r"here:1: chosen is 3, neither a text nor a list of messages"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, r"here:1: chosen is \[\], neither"),
        (
            {"prompt": [USER], "chosen": [RIGHT, USER], "rejected": [WRONG]},
            r"chosen ends with a turn of user, not of the",
        ),
        ({"prompt": "a", "chosen": {"role": "robot", "content": "x"}, "rejected": "c"}, r"here:1: chosen.*robot"),
        ({"chosen": "Hi\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, r"before its first"),
    ],
)
def test_a_row_that_is_no_pair(data: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        to_pair(row(**data))


@pytest.mark.parametrize("name", ["dpo_en_demo.0-149.json", "raschka_preference.0-799.json"])
@pytest.mark.skipif("GRAFTWORK_TEST_DATA" not in os.environ, reason="set GRAFTWORK_TEST_DATA")
def test_every_row_of_real_sets(name: str) -> None:
    rows = json.loads((Path(os.environ["GRAFTWORK_TEST_DATA"]) / "datasets" / "preference" / name).read_text())
    for data in rows:
        pair = to_pair(row(**data))
        theirs = data["chosen"] if isinstance(data["chosen"], str) else data["chosen"]["value"]
        assert [m.content for m in pair.chosen] == [theirs]
        asked = [turn["value"] for turn in data["conversations"]] if "conversations" in data else None
        assert asked is None or [m.content for m in pair.prompt] == asked


# Samples


def test_a_pair_is_encoded_whole_and_shares_its_prompt() -> None:
    encode = encoder()
    sample = encode(row(prompt="2 + 2?", chosen="44", rejected="47"))
    chosen, rejected = (f"<u>2 + 2?\n<a>{answer}<end>" for answer in ("44", "47"))
    tokenizer = encode.tokenizer
    assert sample.parts is not None
    prompt, first, second = sample.parts
    whole = sample.input_ids[: prompt + first].tolist()
    other = [*sample.input_ids[:prompt].tolist(), *sample.input_ids[prompt + first :].tolist()]
    assert whole == tokenizer(chosen).input_ids
    assert other == tokenizer(rejected).input_ids
    # Not up to "4", which both begin with, but which is an answer's.
    assert tokenizer.decode(whole[:prompt]) == "<u>2 + 2?\n<a>"
    assert sample.trained.tolist() == [False] * prompt + [True] * (first + second)
    assert sample.longest == prompt + max(first, second)


def test_turns_before_the_last_are_not_trained_but_may_differ() -> None:
    later = {"role": "user", "content": "And?"}
    sample = encoder()(row(prompt=[USER], chosen=[RIGHT, later, WRONG], rejected=[WRONG, later, RIGHT]))
    assert sample.parts is not None
    prompt, chosen, _ = sample.parts
    assert int(sample.trained.sum()) == 4, "two answers of one byte and an end each"
    assert bytes(sample.input_ids[:prompt].astype(np.uint8).tolist()) != b""
    assert sample.trained[prompt + chosen - 2 : prompt + chosen].all()
    assert not sample.trained[: prompt + chosen - 2].any()


def test_the_row_of_pairs_predicts_both_answers_from_the_prompt() -> None:
    encode = encoder()
    samples = [encode(row(prompt="a" * n, chosen="bc", rejected="d" * (n + 1))) for n in (1, 4)]
    found = to_row(samples)
    assert found.pairs == tuple(sample.parts for sample in samples)
    assert found.pair_labels == ((3, 3), (3, 6))
    start = label = 0
    for (prompt, chosen, rejected), counts in zip(found.pairs or (), found.pair_labels or (), strict=True):
        positions = found.position_ids[0, start : start + prompt + chosen + rejected].tolist()
        assert positions == [*range(prompt + chosen), *range(prompt, prompt + rejected)]
        places = found.label_positions[label : label + sum(counts)].tolist()
        second = start + prompt + chosen
        last = start + prompt - 1
        assert places == [*range(last, second - 1), last, *range(second, second + rejected - 1)]
        ids = found.input_ids[0]
        wanted = [*ids[start + prompt : second].tolist(), *ids[second : second + rejected].tolist()]
        assert found.labels[label : label + sum(counts)].tolist() == wanted
        start, label = second + rejected, label + sum(counts)
    assert found.longest == max(sample.longest for sample in samples)


def test_an_answer_without_its_end_is_refused() -> None:
    encode = encoder()
    with pytest.raises(DataError, match=r"here:1: .*no stop token"):
        PairEncoder(tokenizer=encode.tokenizer, stop_ids=frozenset({9}), variables={})(
            row(prompt="a", chosen="b", rejected="c")
        )


def test_answers_without_a_token_before_them_are_refused() -> None:
    ids, trained = np.array([1, 2], np.int32), np.array([True, True])
    with pytest.raises(DataError, match=r"here:1: the two answers have no token of a prompt before them; give the row"):
        joined((ids, trained), (ids, trained), "here:1")


# Length


def test_a_pair_is_as_long_as_its_longer_conversation() -> None:
    encode, data = encoder(), row(prompt="abc", chosen="d", rejected="efghijkl")
    sample = encode(data)
    assert prepare(data, encode, sample.longest, "error").sample is not None
    outcome = prepare(data, encode, sample.longest - 1, "error")
    assert outcome.verdict == "rejected"
    assert f"{sample.longest} tokens, but a sample may have {sample.longest - 1}" in outcome.reason
    assert prepare(data, encode, sample.longest - 1, "drop").verdict == "dropped"


@pytest.mark.parametrize("length", range(1, 40))
def test_truncation_cuts_the_texts_of_answers_and_nothing_else(length: int) -> None:
    """The end of a turn is nine tokens here: it is whole or not there."""
    encode, data = encoder(CLOSED), row(prompt="abc", chosen="1", rejected="efghijkl")
    sample = encode(data)
    assert sample.parts == (10, 10, 17)
    if length <= 10:
        with pytest.raises(TooLongError, match=r"its prompt of 10 tokens leaves no room for any of the answer"):
            encode.shorten(data, length)
        return
    found = encode.shorten(data, length)
    room, decode = length - 10, encode.tokenizer.decode
    prompt, chosen, rejected = np.split(found.input_ids, np.cumsum(found.parts)[:2])
    assert decode(prompt) == "<u>abc\n<a>"
    assert decode(chosen) == ("1</turn>\n<end>" if room >= 10 else "1")
    assert decode(rejected) == ("efghijkl</turn>\n<end>" if room >= 17 else "efghijkl"[:room])
    assert found.trained.tolist() == [False] * 10 + [True] * (len(chosen) + len(rejected))
    assert found.longest <= length


def test_an_answer_whose_text_cannot_be_cut_is_dropped_with_its_reason() -> None:
    shouting = TEMPLATE.replace(
        "message['content'] + eos_token", "message['content'] | replace('sh', 'SH') + eos_token"
    )
    data = row(prompt="abc", chosen="d", rejected="a shout")
    outcome = prepare(data, encoder(shouting), 12, "truncate")
    assert outcome.verdict == "dropped", outcome.reason
    assert "the chat template rewrites its answer, so it cannot be cut" in outcome.reason
