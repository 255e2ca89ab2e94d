"""Gemma's formats: texts, and what they refuse. The originals are compared with in the repository's own tests."""

from __future__ import annotations

from typing import Any

import pytest

from graftwork import render_chat
from graftwork.chat import find_template
from graftwork.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief. "}
TALK = [{"role": "user", "content": " Hello"}, {"role": "assistant", "content": "Hi\n"}]
TURNS = "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi<end_of_turn>\n"


@pytest.mark.parametrize("name", ["gemma-it", "gemma3-it"])
def test_golden_text(name: str) -> None:
    assert render_chat(TALK, template=name, bos_token="<bos>") == f"<bos>{TURNS}"
    asked = render_chat(TALK[:1], template=name, add_generation_prompt=True)
    assert TURNS.startswith(asked)
    assert asked.endswith("<start_of_turn>model\n")


def test_a_system_message_stands_in_gemma_3s_first_question_only() -> None:
    with_system = TURNS.replace("Hello", "Be brief. \n\nHello")
    assert render_chat([SYSTEM, *TALK], template="gemma3-it") == with_system
    parts = [{"role": "system", "content": [{"type": "text", "text": "Be brief. "}]}, *TALK]
    assert render_chat(parts, template="gemma3-it") == with_system
    with pytest.raises(DataError, match="Gemma has no system message: put its text at the beginning of the first user"):
        render_chat([SYSTEM, *TALK], template="gemma-it")


def test_images_are_shown_by_gemma_3_only() -> None:
    seen = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What? "}]}]
    assert "user\n<start_of_image>What?<end_of_turn>" in render_chat(seen, template="gemma3-it")
    with pytest.raises(DataError, match="takes one text in each message, no tools, tool calls or images"):
        render_chat(seen, template="gemma-it")


@pytest.mark.parametrize(
    ("name", "messages", "said"),
    [
        ("gemma-it", [*TALK, TALK[1]], "the roles must be user, assistant, user, ...; join messages of one role"),
        ("gemma3-it", TALK[1:], "the roles must be user, assistant"),
        ("gemma3-it", [{"role": "user", "content": [{"type": "video"}]}], "parts of the types text and image only"),
        (
            "gemma3-it",
            [{"role": "system", "content": [{"type": "image"}]}, *TALK],
            "the system message must be one text",
        ),
        ("gemma3-it", [TALK[0], {**TALK[1], "tool_calls": [{}]}], "no place for tools or tool calls"),
    ],
)
def test_what_the_formats_have_no_place_for(name: str, messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        render_chat(messages, template=name)


def test_names_that_users_bring() -> None:
    assert {find_template(name).name for name in ("gemma", "gemma2-it", "Gemma2", "gemma-instruct")} == {"gemma-it"}
