"""Which message a token was written for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from graftwork import encode_chat
from graftwork.chat import token_roles

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "!"},
]


def texts(messages: list[dict[str, Any]], tokenizer: Any, template: str, **given: Any) -> list[tuple[Any, str]]:
    """Each stretch of one message, with its text."""
    ids, _ = encode_chat(messages, tokenizer=tokenizer, template=template, **given)
    roles = token_roles(messages, tokenizer=tokenizer, template=template, **given)
    assert len(ids) == len(roles)
    found: list[tuple[Any, list[int]]] = []
    for index, role in zip(ids, roles, strict=True):
        if not found or found[-1][0] != role:
            found.append((role, []))
        found[-1][1].append(index)
    return [(role, tokenizer.decode(part)) for role, part in found]


def test_each_turn_and_the_prompt_after_them(tokenizer: Any) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert texts(MESSAGES[:2], tokenizer, template, add_generation_prompt=True) == [
        (None, "<s>"),
        ((0, "system"), "<|system|>Be brief"),
        ((1, "user"), "<|user|>Hello"),
        (None, "<|assistant|>"),
    ]


def test_loops_in_loops(tokenizer: Any) -> None:
    """A loop that only looks, one over parts, and a loop over all messages inside of one of them."""
    template = (
        "{% for m in messages %}{% set last = loop.last %}{% endfor %}<s>"
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% for part in m.content %}{{ part.text }}{% endfor %}"
        "{% for other in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}"
        "{{ '<|end|>' }}{% endfor %}</s>"
    )
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "system", "content": [{"type": "text", "text": "c"}]},
    ]
    assert texts(messages, tokenizer, template) == [
        (None, "<s>"),
        ((0, "user"), "<|user|>ab<|end|>"),
        ((1, "system"), "<|system|>c<|end|>"),
        (None, "</s>"),
    ]


def test_what_a_macro_holds_back_is_nobodys(tokenizer: Any) -> None:
    template = "{% macro all() %}{% for m in messages %}{{ m.content }}{% endfor %}{% endmacro %}{{ all() }}"
    assert texts(MESSAGES[:2], tokenizer, template) == [(None, "Be briefHello")]


@pytest.mark.parametrize("name", ["llama3_training", "qwen2_5_training", "phi3_training"])
def test_real_templates(data: Path, tokenizer: Any, name: str) -> None:
    source = (data / f"templates/trl/{name}.jinja").read_text()
    found = texts(MESSAGES, tokenizer, source)
    said = [(role, text) for role, text in found if role is not None]
    assert [message["content"] in text for message, (_, text) in zip(MESSAGES[1:], said[-4:], strict=True)] == [
        True
    ] * 4
    assert [role for role, _ in said[-4:]] == [(index, MESSAGES[index]["role"]) for index in range(1, 5)]
