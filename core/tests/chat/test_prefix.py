"""Unmarked templates: the assistant's turns are certain, or the template is refused."""

from __future__ import annotations

from typing import Any

import pytest

from graftwork.chat import EncodedChat, encode_conversation
from graftwork.errors import DataError

SAY = "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
PLAIN = "{% for m in messages %}" + SAY + "{% endfor %}" + PROMPT
REPEATED = [{"role": role, "content": "x"} for _ in range(3) for role in ("user", "assistant")]
HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
TWICE = [*HELLO, {"role": "user", "content": "you"}, {"role": "assistant", "content": "fine"}]


def turns(messages: list[dict[str, str]], tokenizer: Any, template: str) -> tuple[EncodedChat, list[str]]:
    encoded = encode_conversation(messages, tokenizer=tokenizer, template=template)
    return encoded, [tokenizer.decode(encoded.input_ids[start:end]) for start, end in encoded.turns]


def test_answers_that_repeat_the_questions(tokenizer: Any) -> None:
    encoded, said = turns(REPEATED, tokenizer, PLAIN)
    assert said == ["x<|end|>"] * 3
    assert [start for start, _ in encoded.turns] == [4, 10, 16]


def test_a_text_that_closes_the_last_turn_only(tokenizer: Any) -> None:
    """As Phi-3's: end-of-text unless an answer is asked for."""
    closing = "{% for m in messages %}" + SAY + "{% endfor %}" + PROMPT.replace("{% endif", "{% else %}</s>{% endif")
    assert turns(TWICE, tokenizer, closing)[1] == ["Hi<|end|>", "fine<|end|></s>"]
    counted = closing.replace("</s>", "</s>{{ messages | length }}")
    assert turns(TWICE, tokenizer, counted)[1] == ["Hi<|end|>", "fine<|end|></s>4"]


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        # The messages in reverse give prefixes where all say the same
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", REPEATED, "the whole goes on otherwise"),
        # Two and two swapped
        (
            "{% for p in messages | batch(2) %}{% for m in p | reverse %}{{ m.content }}{% endfor %}{% endfor %}",
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}],
            "the whole goes on otherwise",
        ),
        # All questions, then all answers
        (
            "{% for role in ['user', 'assistant'] %}{% for m in messages if m.role == role %}{{ m.content }}<|end|>"
            "{% endfor %}{% endfor %}",
            REPEATED,
            "the whole goes on otherwise",
        ),
        # The name of the user in front of each answer, and no answer
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}<|end|>{% endfor %}{{ messages[-1].content }}",
         [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], "the whole goes on otherwise"),
        # The chain of thought of an earlier answer is left out once there is a later one
        (
            "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
            "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|end|>{% endfor %}" + PROMPT,
            [HELLO[0], {"role": "assistant", "content": "<think>hm</think>Hi"}, *TWICE[2:]],
            "message number 2 lies cannot be told: .* the whole goes on otherwise",
        ),
        # The prompt opens a chain of thought that the answer does not have
        (
            PLAIN.replace("'<|assistant|>' }}", "'<|assistant|><think>' }}"),
            TWICE,
            "ends in '.*<think>', and the whole goes on otherwise",
        ),
        # The first line counts the messages
        ("{{ messages | length }}" + PLAIN, TWICE, "the whole goes on otherwise"),
        # An answer joins the next question
        ("{% for m in messages %}{{ m.content }}{% endfor %}", [*HELLO[:1], {"role": "assistant", "content": " y"},
         {"role": "user", "content": "ou"}], "its last token merges with the text beside it"),
        # An empty answer is left out, and the prompt looks like the next turn
        (
            "{% for m in messages %}{% if m.content %}" + SAY + "{% endif %}{% endfor %}" + PROMPT,
            [HELLO[0], {"role": "assistant", "content": ""}, HELLO[1]],
            "the generation prompt is longer than the turn",
        ),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_refused(tokenizer: Any, template: str, messages: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        encode_conversation(messages, tokenizer=tokenizer, template=template)
    assert "does not mark the assistant's text" in str(caught.value)


def test_the_same_turns_with_control_tokens_as_text(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "a<|end|>"}, HELLO[1], *TWICE[2:]]
    encoded = encode_conversation(messages, tokenizer=tokenizer, template=PLAIN, special_tokens_in_content="as_text")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert encoded.input_ids.count(end) == 4
    assert [tokenizer.decode(encoded.input_ids[start:stop]) for start, stop in encoded.turns] == [
        "Hi<|end|>",
        "fine<|end|>",
    ]
