"""Qwen's formats: texts, what is trained of them, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from graftwork import render_chat
from graftwork.chat import find_template, sandbox
from graftwork.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [{"role": "user", "content": " Hello"}, {"role": "assistant", "content": "Hi "}]
TURNS = "<|im_start|>user\n Hello<|im_end|>\n<|im_start|>assistant\nHi <|im_end|>\n"
CALLS = [{"function": {"name": "f", "arguments": {"x": "é"}}}, {"name": "g", "arguments": {}}]
RESULTS = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
USED = [TALK[0], {"role": "assistant", "content": "Well.", "tool_calls": CALLS}, *RESULTS, TALK[1]]
WRITTEN = (
    '<|im_start|>assistant\nWell.\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n<tool_call>\n'
    '{"name": "g", "arguments": {}}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
)


def trained(name: str, messages: list[dict[str, Any]]) -> list[str]:
    return [text for _, text in sandbox.render(find_template(name).source, {"messages": messages})[1]]


@pytest.mark.parametrize("name", ["qwen2", "qwen2.5", "qwen2-vl-instruct", "qwen3-instruct"])
def test_golden_text(name: str) -> None:
    text = render_chat([SYSTEM, *TALK], template=name)
    assert text == f"<|im_start|>system\nBe brief.<|im_end|>\n{TURNS}"
    assert trained(name, [SYSTEM, *TALK]) == ["Hi <|im_end|>"]
    assert text.startswith(render_chat([SYSTEM, *TALK[:1]], template=name, add_generation_prompt=True))


def test_a_system_message_of_its_own() -> None:
    written = {name: render_chat(TALK, template=name).removesuffix(TURNS) for name in ("qwen2", "qwen2.5", "qwen2_vl")}
    assert written == {
        "qwen2": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        "qwen2.5": (
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        ),
        "qwen2_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    }


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "qwen3-instruct"])
def test_tool_calls_and_their_results(name: str) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    text = render_chat(USED, template=name, tools=tools)
    assert WRITTEN in text or "</think>" in text
    assert '<tools>\n{"type": "function", "function": {"name": "f"}}\n</tools>' in text
    assert [block.endswith("<|im_end|>") for block in trained(name, USED)] == [True, True]


def test_qwen3_thinks_in_the_answers_to_the_last_question_only() -> None:
    thought = {**TALK[1], "reasoning_content": "hm"}
    talk = [TALK[0], thought, TALK[0], thought]
    assert trained("qwen3", talk) == ["Hi <|im_end|>", "<think>\nhm\n</think>\n\nHi <|im_end|>"]
    asked = render_chat(TALK[:1], template="qwen3", add_generation_prompt=True, enable_thinking=False)
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_pictures_and_videos_may_be_numbered() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "video"}, {"type": "image"}]
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    messages = [{"role": "user", "content": content}]
    assert f"user\n{shown}a{video}{shown}<|im_end|>" in render_chat(messages, template="qwen2-vl-instruct")
    numbered = render_chat(messages, template="qwen2-vl-instruct", add_vision_id=True)
    assert f"user\nPicture 1: {shown}aVideo 1: {video}Picture 2: {shown}<|im_end|>" in numbered


@pytest.mark.parametrize(
    ("name", "messages", "said"),
    [
        ("qwen2.5", [*TALK, {"role": "critic", "content": "?"}], "system, user, assistant and tool, not critic"),
        ("qwen3", [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "the user message needs one text"),
        ("qwen2", USED, "no tools, tool calls or images: leave them out, or choose a template that supports them"),
        ("qwen2", [*TALK, {"role": "critic", "content": "?"}], "system, user and assistant, not critic"),
        ("qwen2-vl-instruct", USED, "no place for tools or tool calls: leave them out, or use qwen2.5"),
        ("qwen2-vl-instruct", [{"role": "user", "content": [{"type": "sound"}]}], "types text, image and video only"),
    ],
)
def test_what_the_formats_have_no_place_for(name: str, messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        render_chat(messages, template=name)
