"""The Mistral formats: texts, what they refuse, and ids against mistral-common itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from graftwork import encode_chat, load_tokenizer, render_chat
from graftwork.chat.check import check_template
from graftwork.errors import DataError

BOS_EOS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "Hello "},
    {"role": "assistant", "content": "Hi  "},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
TOOLS_USED = [
    TALK[0],
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"y":2}', "tool_call_id": "a1b2c3d4e"},
    {"role": "assistant", "content": "Two."},
]
GOLDEN = {
    "mistral-v2": "<s>[INST] Hello [/INST] Hi</s>[INST] Be brief.\n\nWhy?[/INST] Because.</s>",
    "mistral-v1": "<s>[INST] Be brief.\n\nHello  [/INST]Hi  </s>[INST] Why? [/INST]Because.</s>",
    "mistral-v3": "<s>[INST] Hello [/INST] Hi</s>[INST] Be brief.\n\nWhy?[/INST] Because.</s>",
    "mistral-nemo": "<s>[INST]Hello [/INST]Hi</s>[INST]Be brief.\n\nWhy?[/INST]Because.</s>",
}
TEXTS = ("Hello", "  two", "naïve", "日本語", "🙂", "a\nb", '"q"', "\\", "[INST]", "</s>", "22", '{"a": [1.0, null]}')
TOOL_FORMATS = ("mistral-v2", "mistral-v3", "mistral-nemo")
FILES = {
    "mistral-v1": "tokenizer.model.v1",
    "mistral-v2": "mistral_instruct_tokenizer_240216.model.v2",
    "mistral-v3": "mistral_instruct_tokenizer_240323.model.v3",
    "mistral-nemo": "tekken_240718.json",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_text(name: str) -> None:
    assert render_chat([SYSTEM, *TALK], template=name, **BOS_EOS) == GOLDEN[name]
    assert render_chat(TALK[:1], template=name, **BOS_EOS) == GOLDEN[name].split("Hi")[0].rstrip(" ").replace(
        "Be brief.\n\n", ""
    )


def test_golden_text_of_tools() -> None:
    expected = (
        '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "f", "description": "d", "parameters": '
        '{"type": "object"}}}][/AVAILABLE_TOOLS][INST] Hello [/INST][TOOL_CALLS] [{"name": "f", "arguments": '
        '{"x": 1}, "id": "a1b2c3d4e"}]</s>[TOOL_RESULTS] {"content": {"y": 2}, "call_id": "a1b2c3d4e"}[/TOOL_RESULTS] '
        "Two.</s>"
    )
    given: dict[str, Any] = {"tools": [TOOL], **BOS_EOS}
    assert render_chat(TOOLS_USED, template="mistral-v3", **given) == expected
    plain = expected.replace("] ", "]").replace("<s> ", "<s>")
    assert render_chat(TOOLS_USED, template="mistral-nemo", **given) == plain


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [TALK[0], TOOLS_USED[2]],
            "after a message of the role user comes one of system or user or assistant here, not",
        ),
        (
            [*TALK, SYSTEM],
            "of the role assistant comes one of assistant or user here, not system; begin with the system",
        ),
        (
            TOOLS_USED[:2] + TALK[:1],
            "one of assistant or tool here, not user; .* answer each tool call with one result",
        ),
        ([*TOOLS_USED[:3], TOOLS_USED[2]], "of the role tool comes one of assistant here, not tool"),
        ([TALK[0], {"role": "assistant", "content": ""}], "joined with, has either a text or tool calls"),
        ([TALK[0], {**TOOLS_USED[1], "content": "and"}], "joined with, has either a text or tool calls"),
        ([*TALK[:2], TOOLS_USED[1]], "joined with, has either a text or tool calls"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "the user message needs one text"),
        ([TALK[0], {**TALK[1], "prefix": True}, TALK[2]], "only the last message can be a prefix"),
    ],
)
@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_what_the_format_has_no_place_for(name: str, messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        render_chat(messages, template=name, **BOS_EOS)


def test_results_name_their_call_since_the_third_format() -> None:
    messages = [*TOOLS_USED[:2], {"role": "tool", "name": "f", "content": "4"}]
    for name in ("mistral-v3", "mistral-nemo"):
        with pytest.raises(DataError, match="a tool message needs the tool_call_id"):
            render_chat(messages, template=name, **BOS_EOS)
    text = render_chat(messages, template="mistral-v2", **BOS_EOS)
    assert text.endswith('</s>[TOOL_RESULTS] [{"name": "f", "content": 4}][/TOOL_RESULTS]')
    assert '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]</s>' in text


def test_the_second_format_forgets_calls_before_the_last_question() -> None:
    text = render_chat([*TOOLS_USED, TALK[2]], template="mistral-v2", tools=[TOOL], **BOS_EOS)
    assert text.startswith("<s>[INST] Hello [/INST] Two.</s>[AVAILABLE_TOOLS] [")
    assert text.endswith("[INST] Why?[/INST]")


def test_what_the_first_format_has_no_place_for() -> None:
    with pytest.raises(DataError, match="no tools, tool calls or images: leave them out, or choose a template"):
        render_chat(TALK, template="mistral-v1", tools=[TOOL], **BOS_EOS)
    with pytest.raises(DataError, match="the roles are system, user and assistant, and no system message comes right"):
        render_chat([*TALK[:2], SYSTEM], template="mistral-v1", **BOS_EOS)
    with pytest.raises(DataError, match="an assistant message has no text; leave it out"):
        render_chat([TALK[0], {"role": "assistant", "content": ""}], template="mistral-v1", **BOS_EOS)
    with pytest.raises(DataError, match="only the last message can be a prefix"):
        render_chat([TALK[0], {**TALK[1], "prefix": True}, TALK[2]], template="mistral-v1", **BOS_EOS)


@pytest.mark.parametrize("name", GOLDEN)
def test_messages_of_one_role_are_joined(name: str) -> None:
    first, answer, second, last = TALK
    talk = [SYSTEM, first, second, answer, last]
    joined = [{**first, "content": "Hello \n\nWhy?"}, {**answer, "content": "Hi  \n\nBecause."}]
    assert render_chat(talk, template=name, **BOS_EOS) == render_chat([SYSTEM, *joined], template=name, **BOS_EOS)
    apart = render_chat([first, SYSTEM, second], template=name, **BOS_EOS)
    assert apart.count("[INST]") == 2
    assert apart.index("Be brief.") < apart.index("Why?")


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_in_a_row_are_one_list(name: str) -> None:
    other = {**CALL, "id": "f5g6h7i8j"}
    apart = [TOOLS_USED[1], {"role": "assistant", "tool_calls": [other]}]
    one = [{"role": "assistant", "tool_calls": [CALL, other]}]
    results = [TOOLS_USED[2], {**TOOLS_USED[2], "tool_call_id": "f5g6h7i8j"}]
    texts = [render_chat([TALK[0], *made, *results], template=name, **BOS_EOS) for made in (apart, one)]
    assert texts[0] == texts[1]
    assert texts[0].count("[TOOL_CALLS]") == 1


@pytest.mark.parametrize("name", GOLDEN)
def test_a_conversation_begins_with_a_question(name: str) -> None:
    text = render_chat([SYSTEM, TALK[1]], template=name, **BOS_EOS)
    assert text.startswith("<s>[INST]")
    assert text.split("[/INST]")[0].strip().endswith("Be brief.")


@pytest.mark.parametrize("name", GOLDEN)
def test_an_answer_that_goes_on(name: str) -> None:
    whole = render_chat(TALK, template=name, **BOS_EOS)
    assert render_chat([*TALK[:3], {**TALK[3], "prefix": True}], template=name, **BOS_EOS) == whole.removesuffix("</s>")
    assert render_chat(TALK, template=name, continue_final_message=True, **BOS_EOS) == whole.removesuffix("</s>")
    with pytest.raises(DataError, match="continue_final_message needs an assistant message as the last one, not one"):
        render_chat(TALK[:3], template=name, continue_final_message=True, **BOS_EOS)


@pytest.mark.parametrize("name", FILES)
def test_what_is_trained_and_checked_of_joined_messages(name: str) -> None:
    tokenizer = load_tokenizer(file_of(name))
    ids, trained = encode_chat([TALK[0], TALK[2], TALK[3], TALK[1]], tokenizer=tokenizer, template=name)
    learnt = [index for index, wanted in zip(ids, trained, strict=True) if wanted]
    answer = "Because.\n\nHi  " if name == "mistral-v1" else "Because.\n\nHi"
    assert learnt == [*tokenizer.encode_ordinary(answer), tokenizer.control_id("</s>")]
    rows = [("row", {"messages": [SYSTEM, *TALK[:1], *TALK, TALK[1], TALK[2], TALK[1], TALK[3]]})]
    if name != "mistral-v1":
        rows.append(("tools", {"messages": [*TOOLS_USED, *TALK[2:]], "tools": [TOOL]}))
    assert check_template(name, tokenizer, rows=rows).violations == ()


@pytest.mark.parametrize("name", FILES)
def test_random_requests_have_the_ids_of_mistral_common(name: str) -> None:
    file = file_of(name)
    from mistral_common.protocol.instruct.normalize import InstructRequestNormalizer
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs, ours = MistralTokenizer.from_file(str(file)), load_tokenizer(file)
    generator = random.Random(name)
    for _ in range(80):
        messages, tools = request(generator, with_tools=name != "mistral-v1")
        flags = ending(generator, messages)
        asked = ChatCompletionRequest.model_validate({"messages": messages, "tools": tools, **flags})
        # What a model is trained on ends in an answer, which only their validation of a request refuses.
        normal = InstructRequestNormalizer.normalizer().from_chat_completion_request(asked)
        expected = theirs.instruct_tokenizer.encode_instruct(normal).tokens
        if messages[-1]["role"] != "assistant" or flags or "prefix" in messages[-1]:
            assert theirs.encode_chat_completion(asked).tokens == expected
        given: dict[str, Any] = {"special_tokens_in_content": "as_text", "tools": tools, **flags}
        assert encode_chat(messages, tokenizer=ours, template=name, **given)[0] == expected, (messages, tools)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [" ", "   ", "\n "])
@pytest.mark.parametrize("flags", [{"continue_final_message": True}, {"prefix": True}])
def test_an_answer_of_spaces_that_goes_on(name: str, content: str, flags: dict[str, bool]) -> None:
    file = file_of(name)
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    prefix = {"prefix": True} if "prefix" in flags else {}
    flags = {} if prefix else flags
    messages: Any = [TALK[0], {"role": "assistant", "content": content, **prefix}]
    asked = ChatCompletionRequest.model_validate({"messages": messages, **flags})
    ids, trained = encode_chat(messages, tokenizer=load_tokenizer(file), template=name, **flags)
    assert ids == MistralTokenizer.from_file(str(file)).encode_chat_completion(asked).tokens
    assert trained[-1] is (name == "mistral-v1" or "\n" in content)


def file_of(name: str) -> Path:
    common = pytest.importorskip("mistral_common", reason="mistral-common is not installed, and its files")
    return Path(common.__file__).parent / "data" / FILES[name]


def ending(random_: random.Random, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Half of the answers at the end are to be gone on with, in one of two ways."""
    if messages[-1]["role"] != "assistant" or random_.random() < 0.5:
        return {}
    if random_.random() < 0.5:
        return {"continue_final_message": True}
    messages[-1]["prefix"] = True
    return {}


def request(random_: random.Random, *, with_tools: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """A conversation as mistral-common takes them: roles follow one another in a row, questions with system messages
    between them, calls of tools with their results.
    """
    messages = said(random_, "system", random_.choice([0, 0, 1, 2]))
    for _ in range(random_.randint(1, 3)):
        messages += said(random_, "user", random_.choice([1, 1, 2]))
        if random_.random() < 0.2:
            messages += [*said(random_, "system", 1), *said(random_, "user", random_.randint(0, 2))]
        for _ in range(random_.choice([0, 1, 1, 2]) if with_tools else 0):
            messages += calls(random_)
        messages += said(random_, "assistant", random_.choice([1, 1, 2]))
    if messages[0]["role"] != "system" and random_.random() < 0.2:
        messages = [*said(random_, "assistant", 1), *messages]
    while random_.random() < 0.5 and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        messages.pop()
    tools = [{**TOOL, "function": {**TOOL["function"], "description": text(random_)}}]  # type: ignore[dict-item]
    return messages, tools if with_tools and random_.random() < 0.6 else None


def said(random_: random.Random, role: str, count: int) -> list[dict[str, Any]]:
    return [{"role": role, "content": text(random_)} for _ in range(count)]


def calls(random_: random.Random) -> list[dict[str, Any]]:
    made = [
        {**CALL, "id": f"abcdefgh{number}", "function": {"name": "f", "arguments": json.dumps({"x": text(random_)})}}
        for number in range(random_.randint(1, 2))
    ]
    results = [{"role": "tool", "content": result(random_), "tool_call_id": call["id"]} for call in made]
    return [{"role": "assistant", "tool_calls": made}, *({**row, **name_of(random_)} for row in results)]


def result(random_: random.Random) -> str | list[dict[str, str]]:
    """A text, or one as a list: of two in a list mistral-common joins requests with empty lines, but what it encodes
    (its own test vectors, core/tests/chat/test_parts.py) with nothing between them.
    """
    content = text(random_)
    return content if random_.random() < 0.8 else [{"type": "text", "text": content}]


def name_of(random_: random.Random) -> dict[str, str]:
    return {"name": "f"} if random_.random() < 0.5 else {}


def text(random_: random.Random) -> str:
    return "".join(random_.choice(TEXTS) for _ in range(random_.randint(1, 3)))
