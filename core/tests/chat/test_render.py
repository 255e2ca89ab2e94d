"""Texts against transformers' own rendering, upstream's expectations, and hand-written ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from graftwork import Conversation, Message, Role, build_chat_template, encode_chat, render_chat
from graftwork.chat import sandbox
from graftwork.errors import DataError, UsageError
from graftwork.messages import ContentItem, Type

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": " Hi. "}]
REAL = [
    "chujiezheng/chatml.jinja",
    "chujiezheng/llama-2-chat.jinja",
    "chujiezheng/llama-3-instruct.jinja",
    "chujiezheng/mistral-instruct.jinja",
    "chujiezheng/gemma-it.jinja",
    "chujiezheng/phi-3.jinja",
    "chujiezheng/vicuna.jinja",
    "chujiezheng/alpaca.jinja",
    "trl/llama3.jinja",
    "trl/llama3_1.jinja",
    "trl/llama3_training.jinja",
    "trl/phi3.jinja",
    "trl/qwen2_5.jinja",
    "trl/qwen2_5_training.jinja",
    "llama.cpp/meta-llama-Llama-3.1-8B-Instruct.jinja",
    "llama.cpp/microsoft-Phi-3.5-mini-instruct.jinja",
]


def test_default_template_writes_one_line_a_turn(tokenizer: Any) -> None:
    text = render_chat(HELLO, template="default", tokenizer=tokenizer)
    assert text == "<s>USER: Hello\nASSISTANT: Hi.</s>"
    prompt = render_chat(HELLO[:1], template="default", tokenizer=tokenizer, add_generation_prompt=True)
    assert prompt == "<s>USER: Hello\nASSISTANT:"
    assert text.startswith(prompt)


def test_default_template_without_special_tokens() -> None:
    assert render_chat(HELLO, template="default") == "USER: Hello\nASSISTANT: Hi."


def test_chatml_template() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert render_chat(messages, template="chat_ml") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi.<|im_end|>\n"
    )
    prompt = render_chat(HELLO[:1], template="chatml", add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_chatml_equals_the_public_template(data: Path, tokenizer: Any, conversation: list[dict[str, str]]) -> None:
    public = (data / "templates/chujiezheng/chatml.jinja").read_text().replace("    ", "").replace("\n", "")
    ours = render_chat(conversation, template="chatml", tokenizer=tokenizer)
    assert ours == render_chat(conversation, template=public, tokenizer=tokenizer)


@pytest.mark.parametrize("file", REAL)
@pytest.mark.parametrize("prompt", [False, True])
def test_text_equals_transformers(
    data: Path, tokenizer: Any, conversation: list[dict[str, str]], file: str, prompt: bool
) -> None:
    source = (data / "templates" / file).read_text()
    expected = tokenizer.apply_chat_template(
        conversation, chat_template=source, tokenize=False, add_generation_prompt=prompt
    )
    assert render_chat(conversation, template=source, tokenizer=tokenizer, add_generation_prompt=prompt) == expected


def test_upstream_expectations(data: Path) -> None:
    rows = _rows(data / "vectors/chat_template/upstream_expected.jsonl")
    for row in rows:
        variables = dict(row["data"])
        messages = variables.pop("messages")
        if row.get("needs_system_merged_into_first_user_turn"):
            system, first, *rest = messages
            messages = [{**first, "content": f"{system['content']}\n{first['content']}"}, *rest]
        assert render_chat(messages, template=row["template"], **variables) == row["expected"], row["id"]
    assert len(rows) == 44


def test_a_template_may_decide_on_the_generation_prompt_and_ask_for_none() -> None:
    template = "{% if add_generation_prompt is not defined or add_generation_prompt %}go{% endif %}"
    with_text = "{{ messages[0].content }}" + template
    given = [render_chat(HELLO[:1], template=with_text, add_generation_prompt=asked) for asked in (None, True, False)]
    assert given == ["Hellogo", "Hellogo", "Hello"]
    asks = "{% for m in messages %}{% if m.content is not none %}{{ m.content + '.' }}{% endif %}{% endfor %}"
    assert render_chat([*HELLO[:1], {"role": "assistant", "content": None}], template=asks) == "Hello."
    with pytest.raises(DataError, match="no attribute 'content'"):
        render_chat([*HELLO[:1], {"role": "assistant"}], template=asks)


def test_reference_renderings(data: Path) -> None:
    for row in _rows(data / "vectors/chat_template/reference_rendered.jsonl"):
        variables, file = dict(row["data"]), data / row["template_file"]
        messages = variables.pop("messages")
        for template in (file, str(file), file.read_text()):
            if "expected" in row:
                assert render_chat(messages, template=template, **variables) == row["expected"], row["id"]
            else:
                with pytest.raises(DataError, match="System role not supported"):
                    render_chat(messages, template=template, **variables)


def test_a_file_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("{{ messages[0].content }}!")
    for template in (tmp_path / "mine", str(tmp_path / "mine")):
        assert render_chat(HELLO, template=template) == "Hello!"
    with pytest.raises(UsageError, match="there is no such file"):
        render_chat(HELLO, template=Path("default"))


def test_message_objects_are_the_same_as_dictionaries() -> None:
    messages = [Message(role=Role.USER, content="Hello"), Message(role=Role.ASSISTANT, content=" Hi. ")]
    expected = render_chat(HELLO, template="chatml")
    assert render_chat(messages, template="chatml") == expected
    assert render_chat(Conversation(messages=messages), template="chatml") == expected


def test_messages_carry_calls_of_tools() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"},
    ]
    conversation = Conversation.from_dict({"messages": messages})
    assert conversation.to_dict()["messages"] == messages
    assert Conversation.from_json(conversation.to_json()) == conversation
    assert (conversation.messages[0].text, conversation.messages[1].name) == ("", "add")
    assert render_chat(conversation, template="{{ messages | tojson }}") == render_chat(
        [{key: message[key] for key in ("role", "content", "name", "tool_calls", "tool_call_id") if key in message}
         for message in messages],
        template="{{ messages | tojson }}",
    )  # fmt: skip


def test_text_parts_are_joined_and_images_stay_parts() -> None:
    parts = [ContentItem(type=Type.TEXT, content="Hel"), ContentItem(type=Type.TEXT, content="lo")]
    assert "Hello<|im_end|>" in render_chat([Message(role=Role.USER, content=parts)], template="chatml")
    pictured = [ContentItem(type=Type.IMAGE_PATH, content="/a.png"), ContentItem(type=Type.TEXT, content="what?")]
    template = "{% for part in messages[0].content %}{{ part.type }}:{{ part.text }};{% endfor %}"
    assert render_chat([Message(role=Role.USER, content=pictured)], template=template) == "image:;text:what?;"


def test_reasoning_is_found_under_both_names() -> None:
    messages = [{"role": "assistant", "content": "4", "reasoning": "2 + 2"}]
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.content }}{% endfor %}"
    assert render_chat(messages, template=template) == "2 + 2|2 + 2|4"


def test_a_dropped_system_message_is_said(caplog: pytest.LogCaptureFixture) -> None:
    template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    assert render_chat([{"role": "system", "content": "Be brief."}, *HELLO], template=template) == "Hello Hi. "
    (said,) = caplog.messages
    assert re.search("drops the system message number 1 .* renders the role 'system'", said)


def test_a_changed_text_is_no_dropped_message(caplog: pytest.LogCaptureFixture) -> None:
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] | upper }}{% endfor %}"
    messages = [{"role": "assistant", "content": "<think>hm</think>so zq0qz"}]
    render_chat(messages, template=template)
    assert "drops the assistant" in caplog.text
    caplog.clear()
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    assert render_chat(messages, template=template) == "so zq0qz"
    assert not caplog.messages


def test_parts_are_probed_as_parts(caplog: pytest.LogCaptureFixture) -> None:
    template = "{% for m in messages %}{% for part in m.content %}{{ part.text | upper }}{% endfor %}{% endfor %}"
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    render_chat(messages, template=template)
    assert "drops the user message" in caplog.text  # upper case hides the probe as well
    caplog.clear()
    assert render_chat(messages, template=template.replace("upper", "replace('H', 'J')")) == "Jello"
    assert not caplog.messages


def test_what_a_template_refuses_is_a_data_error_with_its_words() -> None:
    with pytest.raises(DataError, match=r"refuses the conversation \(assistant\): no question"):
        render_chat(HELLO[1:], template="{{ raise_exception('no question') }}")
    with pytest.raises(DataError, match="'eos_token' is undefined; give it, or a tokenizer that has it"):
        render_chat(HELLO, template="zephyr")
    with pytest.raises(DataError, match="no messages; leave the row out"):
        render_chat([], template="chatml")
    with pytest.raises(DataError, match="must be an object with 'role'"):
        render_chat([{"content": "Hello"}], template="chatml")


def test_wrong_syntax_names_the_line() -> None:
    with pytest.raises(UsageError, match=r"not valid Jinja: line 2: .*'\{% fi %\}'"):
        render_chat(HELLO, template="{{ bos_token }}\n{% fi %}")


FAULTS = {
    "{{ 1 // (messages | length - 2) }}": "ZeroDivisionError: integer division or modulo by zero",
    "{{ (2.0 + messages | length) ** 100000 }}": "OverflowError: .*too large|OverflowError: .*out of range",
    "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}": "RecursionError: maximum recursion depth",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}": "RecursionError: maximum recursion depth",
    "{{ messages[0] + 1 }}": "TypeError: unsupported operand",
    "{{ '%(x)s' % messages[0] }}": "KeyError: 'x'",
    "{{ 'x'.encode('utf-99') }}": "LookupError: unknown encoding: utf-99",
    "{{ cycler() }}": "RuntimeError: at least one item has to be provided",
    "{{ messages[0].content | truncate(1) }}": "AssertionError: expected length >= 3, got 1",
    "{{ 1e999 | int + messages | length }}": "NameError: name 'inf' is not defined",
}


@pytest.mark.parametrize("source", FAULTS)
def test_whatever_a_template_raises_is_told_with_its_name(source: str, tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(source)
    said = (
        rf"^chat template from {re.escape(str(file))} refuses the conversation \(user assistant\): ({FAULTS[source]})"
    )
    with pytest.raises(DataError, match=said):
        render_chat(HELLO, template=file)
    with pytest.raises(DataError, match=said):
        encode_chat(HELLO, template=file, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% macro f(a, a) %}{% endmacro %}",
            "SyntaxError: duplicate argument 'l_1_a' in function definition; mend it",
        ),
        (
            "{% for m in messages %}" * 25 + "{% endfor %}" * 25,
            "SyntaxError: too many statically nested blocks; mend it",
        ),
        ("{{ " + "[" * 2000 + "]" * 2000 + " }}", "RecursionError: maximum recursion depth exceeded.*; mend it"),
    ],
)
def test_what_cannot_be_compiled_is_told_with_its_name(source: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(source)
    with pytest.raises(UsageError, match=rf"^chat template from .*mine\.jinja cannot be compiled: {said}$"):
        render_chat(HELLO, template=file)
    with pytest.raises(UsageError, match=f"^the chat template cannot be compiled: {said}$"):
        build_chat_template(str(file))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_no_fault_of_the_template_is_not_told_as_one(error: type[BaseException]) -> None:
    def stop(*_: Any) -> str:
        raise error

    environment = sandbox.compiled("{{ messages | length }}").environment
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(environment.filters, "length", stop)
        with pytest.raises(error):
            render_chat(HELLO, template="{{ messages | length }} of them")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_refusal_of_tools_says_that_the_row_has_them_and_which_templates_take_them() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    messages = [{"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": "3"}]
    said = (
        r"'zephyr' refuses the conversation \(user assistant, and the tools of the row\): .*\. Templates that support"
    )
    with pytest.raises(DataError, match=rf"{said} tools: llama3\.1, .*qwen3"):
        render_chat(messages, template="zephyr", tools=tools)
    with pytest.raises(DataError, match=r"refuses the conversation \(user assistant\): no answers$"):
        render_chat(messages, template="{{ raise_exception('no answers') }}")
