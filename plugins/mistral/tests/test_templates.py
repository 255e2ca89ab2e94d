"""The Mistral formats: texts, what they refuse, and ids against mistral-common itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from graftwork import encode_chat, load_tokenizer, render_chat
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
    "mistral-v1": "<s>[INST] Be brief.\n\nHello  [/INST]Hi  </s>[INST] Why? [/INST]Because.</s>",
    "mistral-v3": "<s>[INST] Hello [/INST] Hi</s>[INST] Be brief.\n\nWhy?[/INST] Because.</s>",
    "mistral-nemo": "<s>[INST]Hello [/INST]Hi</s>[INST]Be brief.\n\nWhy?[/INST]Because.</s>",
}
TEXTS = ("Hello", "  two", "naïve", "日本語", "🙂", "a\nb", '"q"', "\\", "[INST]", "</s>", "22", '{"a": [1.0, null]}')
FILES = {
    "mistral-v1": "tokenizer.model.v1",
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
        ([TALK[0], TALK[0]], "after a user message comes one of assistant, not user; join messages of one role"),
        ([*TALK, SYSTEM], "after a assistant message comes one of user, not system"),
        (TOOLS_USED[:2] + TALK[:1], "comes one of tool, not user; .* answer tool calls with their results"),
        ([TALK[0], {"role": "assistant", "content": ""}], "has either a text or tool calls"),
        ([TALK[0], {**TOOLS_USED[1], "content": "and"}], "has either a text or tool calls"),
        ([*TOOLS_USED[:2], {"role": "tool", "content": "4"}], "a tool message needs the tool_call_id"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "the user message needs one text"),
    ],
)
@pytest.mark.parametrize("name", ["mistral-v3", "mistral-nemo"])
def test_what_the_format_has_no_place_for(name: str, messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        render_chat(messages, template=name, **BOS_EOS)


def test_what_the_first_format_has_no_place_for() -> None:
    with pytest.raises(DataError, match="no tools, tool calls or images: leave them out, or choose a template"):
        render_chat(TALK, template="mistral-v1", tools=[TOOL], **BOS_EOS)
    with pytest.raises(DataError, match="the roles must be user, assistant, user"):
        render_chat([TALK[0], SYSTEM], template="mistral-v1", **BOS_EOS)


@pytest.mark.parametrize("name", FILES)
def test_random_requests_have_the_ids_of_mistral_common(name: str) -> None:
    common = pytest.importorskip("mistral_common", reason="mistral-common is not installed")
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    file = Path(common.__file__).parent / "data" / FILES[name]
    theirs, ours = MistralTokenizer.from_file(str(file)), load_tokenizer(file)
    generator = random.Random(name)
    for _ in range(60):
        messages, tools = request(generator, with_tools=name != "mistral-v1")
        asked = ChatCompletionRequest.model_validate({"messages": messages, "tools": tools})
        expected = theirs.encode_chat_completion(asked).tokens
        got, _ = encode_chat(messages, tokenizer=ours, template=name, tools=tools, special_tokens_in_content="as_text")
        assert got == expected, (messages, tools)


def request(random_: random.Random, *, with_tools: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """A conversation that ends in a question or a tool's result, as mistral-common takes them."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": text(random_)}] if random_.random() < 0.4 else []
    for last in [False] * random_.randint(0, 2) + [True]:
        messages.append({"role": "user", "content": text(random_)})
        used = with_tools and random_.random() < 0.5
        messages += calls(random_) if used else []
        messages += [] if last else [{"role": "assistant", "content": text(random_)}]
    tools = [{**TOOL, "function": {**TOOL["function"], "description": text(random_)}}]  # type: ignore[dict-item]
    return messages, tools if with_tools and random_.random() < 0.6 else None


def calls(random_: random.Random) -> list[dict[str, Any]]:
    made = [
        {**CALL, "id": f"abcdefgh{number}", "function": {"name": "f", "arguments": json.dumps({"x": text(random_)})}}
        for number in range(random_.randint(1, 2))
    ]
    results = [{"role": "tool", "content": text(random_), "tool_call_id": call["id"]} for call in made]
    return [{"role": "assistant", "tool_calls": made}, *results]


def text(random_: random.Random) -> str:
    return "".join(random_.choice(TEXTS) for _ in range(random_.randint(1, 3)))
