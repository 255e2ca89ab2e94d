"""Ids and masks of whole templates against transformers, with real tokenizers and many conversations."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from graftwork import encode_chat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = {"llama": "llama3/tokenizer.model", "gemma": "gemma", "phi": "phi3", "qwen": "qwen2.5"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"x": "é", "n": [1, None]}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks", "parameters": {"type": "object"}}}
WORDS = [
    "Hello",
    " two  spaces ",
    "\n\n",
    "漢字🙂",
    "a < b > c",
    "</p>",
    "5",
    "def f():\n\treturn",
    "'s",
    "|>",
    "<|",
    "</",
]


def test_reference_ids(data: Path, real: Any) -> None:
    checked = 0
    for line in (data / "vectors/chat_template/reference_rendered.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "ids" in row:
            variables = dict(row["data"])
            messages = variables.pop("messages")
            file = next(path for family, path in FILES.items() if family in row["family"])
            source = (data / row["template_file"]).read_text()
            for tokenizer in (real(file), real(file).hf):
                ids, trained = encode_chat(messages, tokenizer=tokenizer, template=source, **variables)
                assert ids == row["ids"], row["id"]
                assert any(trained) == any(message["role"] == "assistant" for message in messages)
            checked += 1
    assert checked == 20


@pytest.mark.parametrize(
    ("file", "template"),
    [
        ("llama3/tokenizer.model", "llama3_training"),
        ("phi3", "phi3_training"),
        ("qwen2.5", "qwen2_5_training"),
        ("gemma", "gemma_training"),
        ("llama2/tokenizer.model", "qwen2_5_training"),
    ],
)
def test_random_conversations(data: Path, real: Any, file: str, template: str) -> None:
    tokenizer = real(file).hf
    source = (data / f"templates/trl/{template}.jinja").read_text()
    draw = random.Random(11)
    for _ in range(40):
        messages = list(conversation(draw, system="gemma" not in template, calls="qwen" in template))
        tools = [TOOL] if "qwen" in template and draw.random() < 0.5 else None
        expected = tokenizer.apply_chat_template(
            messages, chat_template=source, tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, trained = encode_chat(messages, tokenizer=tokenizer, template=source, tools=tools)
        assert ids == expected["input_ids"], messages
        assert trained == [bool(one) for one in expected["assistant_masks"]], messages


def conversation(draw: random.Random, *, system: bool, calls: bool) -> Iterator[dict[str, Any]]:
    if system and draw.random() < 0.5:
        yield {"role": "system", "content": text(draw)}
    for _ in range(draw.randint(1, 3)):
        yield {"role": "user", "content": text(draw)}
        if calls and draw.random() < 0.4:
            yield {
                "role": "assistant",
                "content": draw.choice(["", text(draw)]),
                "tool_calls": [CALL] * draw.randint(1, 2),
            }
            yield {"role": "tool", "name": "look", "content": text(draw)}
        yield {"role": "assistant", "content": text(draw)}


def text(draw: random.Random) -> str:
    return "x".join(draw.choices(WORDS, k=draw.randint(1, 5)))
