"""Rows to conversations: every public shape, against readings of it that were written by others, and hostile rows."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template
from trl import maybe_convert_to_chatml

from graftwork.chat import render_chat
from graftwork.config import DatasetParams
from graftwork.data.conversations import plain_turns, to_conversation, tools_of, verdict_of
from graftwork.data.files import Unreadable
from graftwork.data.names import look_up
from graftwork.data.preference import to_pair
from graftwork.data.readers import OpenRequest, Row
from graftwork.data.shapes import shape_of
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA", "nowhere")) / "datasets"
real = pytest.mark.skipif(not DATA.is_dir(), reason="GRAFTWORK_TEST_DATA names no folder with datasets")


def row(data: Any) -> Row:
    return Row(data, "rows.jsonl:7", (0, 1))


def turns(data: dict[str, Any]) -> list[tuple[str, str]]:
    return turns_by(data, None)


def turns_by(data: dict[str, Any], field: str | None) -> list[tuple[str, str]]:
    return [(message.role.value, message.text) for message in to_conversation(row(data), field).messages]


def rows_of(name: str, path: Path, **kwargs: Any) -> list[Row]:
    params = DatasetParams(dataset_name=name, dataset_path=str(path), dataset_kwargs=kwargs)
    spec, options = look_up(params)
    return list(spec.open(OpenRequest(dataset=params, params=options)).rows())


ASKED = [("user", "Q"), ("assistant", "A")]
TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SHARED = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"messages": TALK}, ASKED),
        ({"messages": [{"role": "user", "content": [{"type": "text", "content": "Q"}]}, TALK[1]]}, ASKED),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, TALK[1]]}, ASKED),
        ({"messages": [{"role": "developer", "content": "S"}, *TALK]}, [("system", "S"), *ASKED]),
        ({"messages": [{**turn, "name": None, "tool_calls": None} for turn in TALK]}, ASKED),
        ({"messages": json.dumps(TALK)}, ASKED),
        ({"conversation": {"messages": TALK, "metadata": {}}}, ASKED),
        ({"conversation": TALK, "conversation_id": "c"}, ASKED),
        ({"conversations": SHARED}, ASKED),
        ({"conversations": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}]}, ASKED),
        ({"conversations": SHARED, "system": "S"}, [("system", "S"), *ASKED]),
        ({"conversations": [{"from": "system", "value": "S"}, *SHARED], "system": "T"}, [("system", "S"), *ASKED]),
        ({"conversations": SHARED, "system": ""}, ASKED),
        ({"instruction": "Q", "output": "A", "system": "S"}, [("system", "S"), *ASKED]),
        ({"instruction": "Q", "input": "I", "output": "A"}, [("user", "Q\n\nI"), ("assistant", "A")]),
        ({"instruction": "Q", "context": "I", "response": "A"}, [("user", "Q\n\nI"), ("assistant", "A")]),
        (
            {"instruction": "Q", "output": "A", "history": [["q", "a"]]},
            [("user", "q"), ("assistant", "a"), *ASKED],
        ),
        ({"instruction": "Q", "input": "I", "response": "A"}, [("user", "Q\n\nI"), ("assistant", "A")]),
        ({"instruction": "Q", "context": "I", "output": "A"}, [("user", "Q\n\nI"), ("assistant", "A")]),
        ({"instruction": "Q", "input": "I", "context": "I", "output": "A"}, [("user", "Q\n\nI"), ("assistant", "A")]),
        ({"instruction": "Q in I", "input": "I", "output": "A"}, [("user", "Q in I\n\nI"), ("assistant", "A")]),
        # Closed questions, and what has the context in the question already.
        ({"question": "Q", "context": "C", "answer": "A"}, [("user", "Q\n\nC"), ("assistant", "A")]),
        ({"prompt": "Q", "context": "C", "completion": "A"}, [("user", "Q\n\nC"), ("assistant", "A")]),
        ({"question": "Q", "context": "C", "response": "A"}, [("user", "Q\n\nC"), ("assistant", "A")]),
        ({"input": "Q", "context": "C", "output": "A"}, [("user", "Q\n\nC"), ("assistant", "A")]),
        ({"question": "Q", "context": "", "answer": "A"}, ASKED),
        ({"question": "Q", "context": None, "answer": "A"}, ASKED),
        ({"prompt": "C. Q?", "context": "C.", "response": "A"}, [("user", "C. Q?"), ("assistant", "A")]),
        # ms-swift's history
        ({"query": "Q", "response": "A", "history": [["q", "a"]]}, [("user", "q"), ("assistant", "a"), *ASKED]),
        ({"query": "Q", "response": "A", "history": []}, ASKED),
        # A prompt that was made of the question, as many sets keep one, and one that says it again.
        ({"instruction": "Add.", "input": "2, 2", "output": "4", "prompt": "Below is a task:\nAdd.\n2, 2"},
         [("user", "Add.\n\n2, 2"), ("assistant", "4")]),
        ({"system": "S", "system_prompt": "S", "question": "Q", "answer": "A"}, [("system", "S"), *ASKED]),
        ({"prompt": "Q", "completion": "A"}, ASKED),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, ASKED),
        ({"prompt": "Q", "response": "A", "system": "S"}, [("system", "S"), *ASKED]),
        ({"question": "Q", "answer": "A"}, ASKED),
        ({"system_prompt": "S", "question": "Q", "response": "A"}, [("system", "S"), *ASKED]),
        ({"question": "Q", "answer": "A", "system_prompt": "S"}, [("system", "S"), *ASKED]),
        ({"messages": TALK, "system_prompt": "S"}, [("system", "S"), *ASKED]),
        ({"query": "Q", "response": "A", "type": "GSM"}, ASKED),
        ({"query": "Q", "response": "A", "system": "S"}, [("system", "S"), *ASKED]),
        ({"input": "Q", "output": "A"}, ASKED),
        ({"input": "Q", "output": "A", "system": "S"}, [("system", "S"), *ASKED]),
        ({"conversations": [SHARED[0], {"from": "chatgpt", "value": "A"}]}, ASKED),
        # A table with rows of several shapes has every field in each, null where it is another's.
        ({"messages": None, "conversations": None, "instruction": None, "question": "Q", "answer": "A"}, ASKED),
        # In a CSV file they are empty, not null.
        ({"messages": "", "instruction": "", "input": "", "output": "", "query": "Q", "response": "A"}, ASKED),
        ({"instruction": "", "input": "Q", "output": "A"}, ASKED),
        # The richer shape is meant, and the same thing said twice is no two things.
        ({"messages": TALK, "prompt": "other", "completion": "other"}, ASKED),
        ({"messages": TALK, "conversations": SHARED}, ASKED),
        ({"messages": TALK, "dialogue": "a text that is no list of turns"}, ASKED),
        ({"question": "Q", "query": "Q", "response": "A"}, ASKED),
        ({"instruction": "Q", "output": "A", "prompt": "Q", "completion": "A"}, ASKED),
    ],
)  # fmt: skip
def test_shapes(data: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(data) == expected
    assert shape_of(data) == "chat"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"question": "Q", "answer": "A", "response": "B"}, "question + answer or as question + response, and"),
        ({"prompt": "P", "completion": "A", "input": "Q", "output": "A"}, "prompt + completion or as input + output"),
        ({"query": "P", "question": "Q", "response": "A"}, r"question \+ response or as query \+ response, and these"),
        ({"instruction": "Q", "output": "A", "response": "B"}, "instruction + output or as instruction + response"),
        ({"instruction": "Q", "input": "I", "output": "A", "prompt": "Q", "completion": "A"}, "as prompt + completion"),
    ],
)
def test_a_row_that_could_be_two_things_is_an_error(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message.replace(" + ", r" \+ ")) as error:
        to_conversation(row(data))
    assert str(error.value).startswith("rows.jsonl:7: it can be read as ")
    assert str(error.value).endswith("these differ; remove the fields that are not meant")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"instruction": "Be brief.", "question": "Q?", "answer": "A"},
            "question is what is asked, and the text in instruction would be lost; join the two in question (or call "
            "them instruction and input), or remove instruction",
        ),
        (
            {"prompt": "Translate.", "input": "Oui", "output": "Yes"},
            "input is what is asked, and the text in prompt would be lost; join the two in input (or call them "
            "instruction and input), or remove prompt",
        ),
        (
            {"prompt": "Translate.", "input": "Oui", "completion": "Yes"},
            "prompt is what is asked, and the text in input would be lost; join the two in prompt (or call them "
            "instruction and input), or remove input",
        ),
        (
            {"instruction": "Q", "input": "I", "context": "C", "output": "A"},
            "input and context both stand beside instruction, and are not the same; join them in one field, or remove "
            "the one that is not meant",
        ),
        (
            {"question": "Q", "answer": "A", "system": "S", "system_prompt": "T"},
            "system and system_prompt are both there, and not the same; remove one of them",
        ),
        *(
            (
                {"prompt": TALK[:1], "completion": TALK[1:], field: given},
                f"prompt is a list of turns, and {field} beside it would be lost; put it into the turns, or remove it",
            )
            for field, given in (("context", "C"), ("history", [["q", "a"]]))
        ),
    ],
)
def test_a_row_loses_no_text_without_a_word(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        to_conversation(row(data))
    assert str(error.value) == f"rows.jsonl:7: {message}"


def test_weights_are_read() -> None:
    """0 and 1 as OpenAI has them; 0.0 and 1.0 are what a table makes of them where some are missing."""
    weighed = [{**TALK[0], "weight": 0}, {**TALK[1], "weight": 0}, TALK[0], {**TALK[1], "weight": 1.0}]
    for field, given in (("messages", weighed), ("conversations", [{**SHARED[0]}, {**SHARED[1], "weight": 0.0}])):
        found = [message.weight for message in to_conversation(row({field: given})).messages]
        assert found == ([0, 0, None, 1] if field == "messages" else [None, 0])
    assert plain_turns(row({"messages": weighed})) is None


def test_two_lists_of_turns_need_a_name() -> None:
    other = [*TALK, *TALK]
    for data in ({"messages": TALK, "conversations": other}, {"conversations": other, "messages": json.dumps(TALK)}):
        with pytest.raises(
            DataError,
            match=r"rows\.jsonl:7: messages and conversations each hold a conversation, and not the same one; name the "
            r"right one in dataset_kwargs\.messages_field, or remove the others",
        ):
            to_conversation(row(data))
        assert plain_turns(row(data)) is None, "the short way has to see it too"
        assert len(to_conversation(row(data), "messages").messages) == 2
        assert len(to_conversation(row(data), "conversations").messages) == 4
    assert plain_turns(row({"messages": TALK, "conversations": other}), "messages") is not None


@pytest.mark.parametrize("data", [{"messages": TALK}, {"question": "Q", "answer": "A"}, {"n": 1}, {}])
def test_a_wrong_name_of_the_turns_is_an_error(data: dict[str, Any]) -> None:
    """Another field in the place of the one that was asked for would be trained on without a word."""
    said = (
        "rows.jsonl:7: dataset_kwargs.messages_field is 'dialog', and the row's fields are "
        f"{', '.join(data) or 'none'}; name the one that holds the turns, or leave messages_field out"
    )
    for read in (lambda: to_conversation(row(data), "dialog"), lambda: to_pair(row(data), "dialog")):
        with pytest.raises(DataError) as error:
            read()
        assert str(error.value) == said
    assert turns_by({**data, "dialog": None, "messages": TALK}, "dialog") == ASKED, "a cell that is empty in a table"


CALL = {"name": "add", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "function_call", "value": json.dumps([CALL])},
        {"from": "tool_call", "value": json.dumps(CALL)},
        {"from": "function-call", "value": CALL},
        {"role": "tool_call", "content": json.dumps(CALL)},
        {"role": "function_call", "content": json.dumps({**CALL, "arguments": '{"a": 1}'})},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {**CALL, "arguments": '{"a": 1}'}}]},
        {"role": "assistant", "content": None, "function_call": {**CALL, "arguments": '{"a": 1}'}},
    ],
)
@pytest.mark.parametrize(
    "result",
    [
        *({"from": name, "value": "3"} for name in ("observation", "tool", "tool_response", "function_response")),
        *({"role": name, "content": "3"} for name in ("function", "tool_response", "observation")),
    ],
)
def test_a_call_of_a_tool_and_its_result(turn: dict[str, Any], result: dict[str, Any]) -> None:
    messages = to_conversation(row({"messages": [TALK[0], turn, result, TALK[1]]})).messages
    assert [message.role.value for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1].tool_calls == [{"type": "function", "function": CALL}]
    assert messages[2].text == "3"


# As transformers documents calls and results of tools, and what one of its templates may do with them.
TOOLS_TEMPLATE = (
    "{% for tool in tools or [] %}[{{ tool.function | tojson }}]{% endfor %}{% for message in messages %}"
    "<{{ message.role }}>{{ message.content or '' }}{% for call in message.tool_calls or [] %}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}{% endfor %}{% endfor %}"
)
ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
TWO = {"name": "add", "arguments": {"a": 2}}


@pytest.mark.parametrize(
    "data",
    [
        {  # glaive, as LLaMA-Factory has it
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "function_call", "value": json.dumps([CALL, TWO])},
                {"from": "observation", "value": "3"},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "A"},
            ],
            "tools": json.dumps([ADD]),
        },
        {  # ms-swift: a turn for each of the calls that are made at once
            "messages": [
                {"role": "user", "content": "Q"},
                {"role": "tool_call", "content": json.dumps(CALL)},
                {"role": "tool_call", "content": json.dumps(TWO)},
                {"role": "tool_response", "content": "3"},
                {"role": "tool_response", "content": "4"},
                {"role": "assistant", "content": "A"},
            ],
            "tools": json.dumps([{"type": "function", "function": ADD}]),
        },
    ],
)
def test_calls_are_written_as_transformers_writes_openais(data: dict[str, Any]) -> None:
    calls = [{"type": "function", "function": one} for one in (CALL, TWO)]
    openai = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "A"},
    ]
    tools = [{"type": "function", "function": ADD}]
    [theirs], _ = render_jinja_template([openai], tools=tools, chat_template=TOOLS_TEMPLATE)
    conversation = to_conversation(row(data))
    assert render_chat(conversation, template=TOOLS_TEMPLATE, tools=tools_of(row(data))) == theirs
    assert "<tool>3<tool>4<assistant>A" in theirs


def test_turns_of_a_tool_are_what_trl_makes_of_them() -> None:
    shared = [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "B"}, {"from": "tool", "value": "3"}]
    shared.append({"from": "assistant", "value": "A"})
    theirs = maybe_convert_to_chatml({"conversations": copy.deepcopy(shared)})["messages"]
    assert turns({"conversations": shared}) == [(turn["role"], turn["content"]) for turn in theirs]


def test_tools_under_the_name_that_openai_had_first() -> None:
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
    assert tools_of(row({"messages": TALK, "functions": [function]})) == [{"type": "function", "function": function}]
    assert plain_turns(row({"messages": TALK, "functions": [function]})) is None, "it is more than its messages"
    with pytest.raises(DataError, match=r"rows.jsonl:7: functions is no list of objects but 5"):
        tools_of(row({"messages": TALK, "functions": 5}))


def test_arguments_that_are_no_object_stay_a_text() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": "a=1"}}
    messages = to_conversation(row({"messages": [{"role": "assistant", "tool_calls": [call]}]})).messages
    assert messages[0].tool_calls == [call]


def test_tools_that_are_described_by_themselves_are_put_where_templates_look() -> None:
    bare = {"name": "add", "parameters": {"type": "object"}}
    wrapped = [{"type": "function", "function": bare}]
    assert tools_of(row({"tools": [bare]})) == tools_of(row({"tools": json.dumps(wrapped)})) == wrapped
    assert tools_of(row({"tools": "[]"})) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"conversations": None}, r"rows\.jsonl:7: conversations: Input should be a valid list \(got None\)"),
        ({"conversations": [[]]}, r"conversations\.0: Input should be .*\(got \[\]\)"),
        ({"conversations": [3]}, r"conversations\.0: Input should be .*\(got 3\)"),
        ({"messages": "a text"}, r"messages: Input should be a valid list \(got 'a text'\)"),
        ({"messages": "[{"}, r"messages is a text that is not JSON: '\[\{'"),
        (
            {"conversations": [{"from": "narrator", "value": "Q"}]},
            r"rows\.jsonl:7: conversations\.0\.from: 'narrator' is nobody known; expected one of: human, user, gpt",
        ),
        ({"conversations": [{"from": ["gpt"], "value": "Q"}]}, r"conversations\.0\.from: \['gpt'\] is nobody known"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, r"conversations\.0\.content\S*: Input should .*\(got 3\)"),
        ({"conversations": [{"from": "gpt", "value": None}]}, r"conversations\.0: .*content is null, and there are"),
        (
            {"conversations": [{"from": "function_call", "value": "add(1)"}]},
            r"conversations\.0\.value: a function_call that is not JSON: 'add\(1\)'",
        ),
        (
            {"messages": [TALK[0], {"role": "tool_call", "content": "add(1)"}]},
            r"messages\.1\.content: a tool_call that is not JSON: 'add\(1\)'",
        ),
        (
            {"conversations": [{"from": "function_call", "value": '{"arguments": {}}'}]},
            r"conversations\.0\.value: a function_call has a name and arguments; got '\{\"arguments\"",
        ),
        *(
            ({"messages": [{**TALK[1], "weight": bad}]}, rf"jsonl:7: messages\.0\.weight: .* 0 or 1 \(got {bad!r}\)")
            for bad in (2, -1, 0.5, "1", True)
        ),
        ({"messages": [{**TALK[0], "weight": 1}, TALK[1]]}, r"messages\.0: .*weight 1 on a turn of user: only the a"),
        ({"messages": [{**TALK[1], "train": 0}]}, r"messages\.0\.train: Extra inputs are not permitted \(got 0\)"),
        ({"messages": [{"role": "assistant", "tool_calls": "add"}]}, r"messages\.0\.tool_calls: .*\(got 'add'\)"),
        ({"conversations": SHARED[:1]}, r"no turn has the role assistant, so there is nothing to learn; remove"),
        ({"conversation": {"turns": []}}, r"conversation: Input should be a valid list \(got \{'turns': \[\]\}\)"),
        ({"conversations": SHARED, "system": 3}, r"rows\.jsonl:7: system is int 3, not a text"),
        ({"instruction": "Q", "output": "A", "history": "q"}, r"history is 'q', not a list of \[question, answer\]"),
        ({"instruction": "Q", "output": "A", "history": [["q"]]}, r"history\.0 is \['q'\], not \[question, answer\]"),
        ({"question": "Q", "answer": "A", "history": "q"}, r"history is 'q', not a list of \[question, answer\]"),
        ({"question": "Q", "answer": "A", "context": {"title": ["T"]}}, r"context is dict .*, not a text"),
        ({"prompt": "Q", "completion": 3.5}, r"completion is float 3\.5, not a text"),
        ({"prompt": [], "completion": "A"}, None),
        ({"prompt": ["Q"], "completion": "A"}, r"prompt\.0: Input should be .*\(got 'Q'\)"),
        ({"question": "Q"}, r"fields question are no known row; expected one of: messages; conversations \(ShareGPT\)"),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            r"fields prompt, chosen, rejected are preference pairs, not conversations; read them with dataset_name: "
            r"preference_pairs_jsonl, and train on them with a trainer_type that learns from preference pairs \(",
        ),
        ({}, r"fields none are no known row"),
    ],
)  # fmt: skip
def test_hostile_rows(data: dict[str, Any], message: str | None) -> None:
    if message is None:  # an answer to nothing: what the template makes of it is for the template to say
        assert turns(data) == [("assistant", "A")]
        return
    with pytest.raises(DataError, match=message):
        to_conversation(row(data))


def test_the_trainers_that_are_named_are_those_that_are_installed(install_plugin: Callable[..., str]) -> None:
    install_plugin(
        "from graftwork import hookimpl\nfrom graftwork.specs import TrainerSpec\n\n@hookimpl\n"
        "def graftwork_trainers():\n"
        "    return [TrainerSpec(name='TOY_PAIRS', schemas=('preference',), build=print)]\n"
    )
    with pytest.raises(DataError, match=r"\(.*\bTOY_PAIRS\b.*\)"):
        to_conversation(row({"prompt": "Q", "chosen": "A", "rejected": "B"}))


def test_a_row_that_cannot_be_read_says_so_wherever_it_is_looked_at() -> None:
    data = pickle.loads(pickle.dumps(Unreadable("rows.jsonl:7: not JSON")))
    looks = [lambda: data["x"], lambda: list(data), lambda: len(data), lambda: "x" in data, lambda: data.get("x")]
    for look in [*looks, lambda: to_conversation(row(data)), lambda: verdict_of(row(data))]:
        with pytest.raises(DataError, match=r"rows\.jsonl:7: not JSON"):
            look()
    assert data == Unreadable("rows.jsonl:7: not JSON") != Unreadable("else")


# What a dataset holds


@pytest.mark.parametrize(
    ("data", "schema"),
    [
        ({"text": "T", "label": 1}, "text"),
        ({"messages": TALK, "text": "T"}, "chat"),
        ({"messages": TALK, "chosen": TALK, "rejected": TALK}, "preference"),
        ({"chosen": "A", "rejected": "B"}, "preference"),
        ({"prompt": "Q", "completion": "A", "label": True}, "preference"),
        ({"prompt": "Q", "completion": "A", "label": 3}, "chat"),
        ({"conversations": SHARED, "image": "a.png"}, "image-chat"),
        ({"messages": [{"role": "user", "content": [{"type": "image_path", "content": "a.png"}]}]}, "image-chat"),
        ({"messages": TALK, "image": None, "chosen": None, "rejected": None}, "chat"),
        ({"body": "T"}, None),
        ({}, None),
    ],
)
def test_what_a_row_is(data: dict[str, Any], schema: str | None) -> None:
    assert shape_of(data) == schema


# KTO


def test_an_answer_with_a_verdict() -> None:
    for data in ({"messages": TALK}, {"prompt": "Q", "completion": "A"}, {"messages": [], "turns": TALK}):
        field = "turns" if "turns" in data else None
        labels = (True, False, 1, 0, 1.0, 0.0, "1.0", "0.0")
        assert [verdict_of(row({**data, "label": label}), field) for label in labels] == [True, False] * 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"messages": TALK}, r"rows\.jsonl:7: label is None; each row says with label: true or false"),
        ({"messages": TALK, "label": "yes"}, r"label is 'yes'; each row says with label"),
        ({"messages": TALK, "label": 2}, r"label is 2; each row says with label"),
        ({"messages": TALK, "label": 0.5}, r"label is 0\.5; each row says with label"),
        ({"messages": TALK, "label": float("nan")}, r"label is nan; each row says with label"),
        ({"messages": [*TALK, TALK[0]], "label": True}, r"the assistant's answer .*roles are user, assistant, user"),
        ({"messages": TALK[1:], "label": True}, r"the assistant's answer to something; its roles are assistant"),
    ],
)  # fmt: skip
def test_verdicts_that_are_none(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        verdict_of(row(data))


# Real sets


@real
@pytest.mark.parametrize(
    ("file", "count", "schema"),
    [
        ("instruct/alpaca_en_demo.0-499.json", 500, "chat"),
        ("instruct/identity.json", 91, "chat"),
        ("instruct/raschka_instruction.0-799.json", 800, "chat"),
        ("instruct/gsm8k_train.0-999.jsonl", 1000, "chat"),
        ("tools/glaive_toolcall_en_demo.0-149.json", 150, "chat"),
        ("preference/dpo_en_demo.0-149.json", 150, "preference"),
        ("preference/kto_en_demo.0-149.json", 150, "preference"),
        ("preference/raschka_preference.0-799.json", 800, "preference"),
        ("text/c4_demo.0-149.jsonl", 150, "text"),
        ("vision/mnist_vqa/mnist_vqa.jsonl", 600, "image-chat"),
    ],
)
def test_real_sets_are_recognised_whole(file: str, count: int, schema: str) -> None:
    params = DatasetParams(dataset_name="huggingface", dataset_path=str(DATA / file))
    spec, options = look_up(params)
    rows = list(spec.open(OpenRequest(dataset=params, params=options)).rows())
    assert (len(rows), spec.schema) == (count, schema)
    assert {shape_of(row.data) for row in rows} == {schema}
    if schema == "chat":
        assert all(to_conversation(row).messages[-1].role == "assistant" for row in rows)


@real
def test_sharegpt_is_what_trl_makes_of_it() -> None:
    rows = rows_of("vl_sft_jsonl", DATA / "vision/mnist_vqa/mnist_vqa.jsonl")
    roles = {"human": "user", "gpt": "assistant"}
    for one in rows:
        theirs = maybe_convert_to_chatml(copy.deepcopy(dict(one.data)))["messages"]
        assert turns(dict(one.data)) == [(roles[turn["role"]], turn["content"]) for turn in theirs]


def llama_factory(data: dict[str, Any]) -> list[tuple[str, Any]]:
    """Its converter's mapping, as documented: tags to roles, a function call's value is the call's JSON."""
    roles = {"human": "user", "gpt": "assistant", "function_call": "function", "observation": "tool"}
    return [
        (roles[turn["from"]], json.loads(turn["value"]) if turn["from"] == "function_call" else turn["value"])
        for turn in data["conversations"]
    ]


@real
def test_calls_of_tools_are_what_llama_factory_makes_of_them() -> None:
    rows = rows_of("text_sft", DATA / "tools/glaive_toolcall_en_demo.0-149.json")
    calls = Counter()
    for one in rows:
        ours: list[tuple[str, Any]] = []
        for message in to_conversation(one).messages:
            if message.tool_calls:
                [call] = message.tool_calls
                ours.append(("function", call["function"]))
            else:
                ours.append((message.role.value, message.text))
        assert ours == llama_factory(dict(one.data))
        calls.update(role for role, _ in ours)
        tools = json.loads(one.data["tools"])
        assert tools_of(one) == ([{"type": "function", "function": tool} for tool in tools] or None)
    assert calls == {"user": 397, "assistant": 397, "function": 108, "tool": 108}


@real
def test_the_verdicts_of_a_real_set() -> None:
    rows = rows_of("preference_pairs_jsonl", DATA / "preference/kto_en_demo.0-149.json")
    assert Counter(verdict_of(one) for one in rows) == {True: 78, False: 72}
