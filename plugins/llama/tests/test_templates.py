"""The two chat templates against golden texts, public templates, and transformers' ids and masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from graftwork import build_chat_template, render_chat
from graftwork.chat import check_turns, encode_conversation, find_template, sandbox
from graftwork.errors import DataError
from graftwork.registry import get_registry
from graftwork.tokenizers import stop_token_ids

SYSTEM = {"role": "system", "content": "Be brief."}
ONE = [{"role": "user", "content": "Hello "}, {"role": "assistant", "content": " Hi"}]
TWO = [*ONE, {"role": "user", "content": "Why?\n"}, {"role": "assistant", "content": "Because."}]
CONVERSATIONS = {"one": ONE, "two": TWO, "system": [SYSTEM, *TWO], "open": [SYSTEM, *TWO[:3]]}
TOKENS = {
    "llama2": {"bos_token": "<s>", "eos_token": "</s>"},
    "llama3-instruct": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
}
PUBLIC = {
    "llama2": ["chujiezheng/llama-2-chat.jinja"],
    "llama3-instruct": ["trl/llama3.jinja", "trl/llama3_training.jinja", "chujiezheng/llama-3-instruct.jinja"],
}
GOLDEN = {
    "llama2": ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi </s><s>[INST] Why? [/INST] Because. </s>"),
    "llama3-instruct": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nBecause.<|eot_id|>"
    ),
}
LEARNT = {"llama2": [" Hi </s>", " Because. </s>"], "llama3-instruct": ["Hi<|eot_id|>", "Because.<|eot_id|>"]}


def small_tokenizer(name: str) -> Any:
    """A token a byte, and one for each special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    backend.add_special_tokens([*special, "<|start_header_id|>", "<|end_header_id|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS[name])


@pytest.fixture(params=list(TOKENS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def templates() -> Path:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the public templates are not here")
    return Path(root) / "templates"


def test_golden_text(name: str) -> None:
    assert render_chat([SYSTEM, *TWO], template=name, **TOKENS[name]) == GOLDEN[name]


@pytest.mark.parametrize("which", list(CONVERSATIONS))
@pytest.mark.parametrize("prompt", [False, True])
def test_text_equals_the_public_templates(templates: Path, name: str, which: str, prompt: bool) -> None:
    for file in PUBLIC[name]:
        source = (templates / file).read_text()
        if file.startswith("chujiezheng"):  # formatted for reading; its authors strip it before use
            source = source.replace("    ", "").replace("\n", "")
        rendered = [
            render_chat(CONVERSATIONS[which], template=text, add_generation_prompt=prompt, **TOKENS[name])
            for text in (name, source)
        ]
        assert rendered[0] == rendered[1], file


def test_ids_and_mask_equal_transformers(name: str) -> None:
    tokenizer = small_tokenizer(name)
    for messages in (ONE, TWO, [SYSTEM, *TWO]):
        encoded = encode_conversation(messages, tokenizer=tokenizer, template=name)
        expected = tokenizer.apply_chat_template(
            messages, chat_template=build_chat_template(name), return_dict=True, return_assistant_tokens_mask=True
        )
        assert encoded.input_ids == expected["input_ids"]
        assert [int(trained) for trained in encoded.trained] == expected["assistant_masks"]


def test_answers_and_their_end_are_learnt(name: str) -> None:
    tokenizer = small_tokenizer(name)
    encoded = encode_conversation([SYSTEM, *TWO], tokenizer=tokenizer, template=name)
    assert [tokenizer.decode(encoded.input_ids[start:end]) for start, end in encoded.turns] == LEARNT[name]
    family = get_registry().families["llama"]
    assert check_turns(encoded, stop_token_ids(tokenizer, family=family)) == encoded
    assert check_turns(encoded, stop_token_ids(tokenizer, template=name)) == encoded


def test_a_message_added_later_never_changes_the_text_before(name: str) -> None:
    whole = render_chat([SYSTEM, *TWO], template=name, **TOKENS[name])
    for end in range(2, 5):
        assert whole.startswith(render_chat([SYSTEM, *TWO][:end], template=name, **TOKENS[name]))


def test_what_the_formats_have_no_place_for_is_refused() -> None:
    with pytest.raises(DataError, match="roles must be user, assistant, user"):
        render_chat([*ONE, ONE[1]], template="llama2", **TOKENS["llama2"])
    with pytest.raises(DataError, match="the roles are system, user and assistant, not tool"):
        render_chat([*ONE, {"role": "tool", "content": "4"}], template="llama3-instruct")


HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
DATED = HEADER.format("system") + "Cutting Knowledge Date: December 2023\nToday Date: {}\n\nBe brief.<|eot_id|>"
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}


@pytest.mark.parametrize("name", ["llama3.1", "llama3.2"])
def test_no_text_depends_on_the_day(name: str) -> None:
    talk = HEADER.format("user") + "Hello<|eot_id|>" + HEADER.format("assistant") + "Hi<|eot_id|>"
    assert render_chat([SYSTEM, *ONE], template=name) == DATED.format("26 Jul 2024") + talk
    assert render_chat([SYSTEM, *ONE], template=name, date_string="1 Jan 2020") == DATED.format("1 Jan 2020") + talk


@pytest.mark.parametrize("name", ["llama3.1", "llama3.2"])
def test_tools_stand_in_the_first_question_and_calls_are_learnt(name: str) -> None:
    messages = [ONE[0], CALL, {"role": "tool", "content": "4"}, ONE[1]]
    text = render_chat(messages, template=name, tools=[TOOL])
    assert "Environment: ipython\n" in text
    asked = text.partition(HEADER.format("user"))[2].partition("<|eot_id|>")[0]
    assert asked.startswith("Given the following functions")
    assert asked.endswith('"name": "f"\n    }\n}\n\nHello')
    assert HEADER.format("ipython") + '"4"<|eot_id|>' in text
    blocks = sandbox.render(find_template(name).source, {"messages": messages})[1]
    assert [block for _, block in blocks] == ['{"name": "f", "parameters": {"x": 1}}<|eot_id|>', "Hi<|eot_id|>"]


def test_built_in_tools_are_called_by_name() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"q": "a", "n": "b"}}}]}
    text = render_chat([ONE[0], call], template="llama3.1", builtin_tools=["f", "code_interpreter"])
    assert "Environment: ipython\nTools: f\n\nCutting" in text
    assert text.endswith('<|python_tag|>f.call(q="a", n="b")<|eom_id|>')
    with pytest.raises(DataError, match="the arguments of the built-in tool f must be texts; write numbers as texts"):
        render_chat([ONE[0], CALL], template="llama3.1", builtin_tools=["f"])


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([SYSTEM], "the tools stand in the first user message, so one must follow the system message"),
        ([ONE[0], {**CALL, "content": "Well."}], "is a text or one tool call"),
        ([ONE[0], {**CALL, "tool_calls": CALL["tool_calls"] * 2}], "make several calls several messages"),
        ([ONE[0], {"role": "user", "content": [{"type": "image"}]}], "the user message needs one text"),
    ],
)
def test_what_has_no_place_beside_tools(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        render_chat(messages, template="llama3.1", tools=[TOOL])


def test_names_and_stops() -> None:
    assert find_template("llama2-chat").name == "llama2"
    assert find_template("LLAMA3").stop == ("<|eot_id|>",)
