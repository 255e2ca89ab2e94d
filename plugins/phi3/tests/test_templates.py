"""Phi-3's and Phi-4's formats: texts, and what they refuse."""

from __future__ import annotations

import pytest

from graftwork import render_chat
from graftwork.chat import find_template
from graftwork.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [{"role": "user", "content": " Hello"}, {"role": "assistant", "content": "Hi "}]
PHI3 = "<|system|>\nBe brief.<|end|>\n<|user|>\n Hello<|end|>\n<|assistant|>\nHi <|end|>\n"
PHI4 = (
    "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|> Hello<|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hi <|im_end|>"
)


@pytest.mark.parametrize("name", ["phi3-instruct", "phi3.5-instruct"])
def test_phi_3_closes_a_conversation_that_asks_nothing(name: str) -> None:
    assert render_chat([SYSTEM, *TALK], template=name, eos_token="<|endoftext|>") == f"{PHI3}<|endoftext|>"
    asked = render_chat([SYSTEM, *TALK[:1]], template=name, add_generation_prompt=True)
    assert PHI3.startswith(asked)
    assert asked.endswith("<|assistant|>\n")


def test_phi_3_5_has_no_empty_system_message() -> None:
    empty = [{"role": "system", "content": ""}, *TALK[:1]]
    assert render_chat(empty, template="phi3.5", add_generation_prompt=True).startswith("<|user|>")
    assert render_chat(empty, template="phi3", add_generation_prompt=True).startswith("<|system|>\n<|end|>")


def test_phi_4_writes_no_line_ends() -> None:
    assert render_chat([SYSTEM, *TALK], template="phi4") == PHI4
    asked = render_chat([SYSTEM, *TALK[:1]], template="phi-4", add_generation_prompt=True)
    assert PHI4.startswith(asked)
    assert asked.endswith("<|im_start|>assistant<|im_sep|>")


@pytest.mark.parametrize("name", ["phi3-instruct", "phi3.5-instruct", "phi4"])
def test_what_the_formats_have_no_place_for_is_refused_and_not_dropped(name: str) -> None:
    with pytest.raises(DataError, match="the roles are system, user and assistant, not tool; leave such messages out"):
        render_chat([*TALK, {"role": "tool", "content": "4"}], template=name)
    with pytest.raises(DataError, match="no tools, tool calls or images"):
        render_chat(TALK, template=name, tools=[{"function": {"name": "f"}}])


def test_names_that_users_bring() -> None:
    assert {find_template(name).name for name in ("phi3", "phi-3", "Phi-3-instruct")} == {"phi3-instruct"}
    assert find_template("phi3").stop == ("<|end|>",)
