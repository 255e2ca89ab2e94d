"""Conversations poured into moulds: the tokens that the plain way gives, and templates that look at texts refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

from graftwork.chat import TemplateSource, check_turns, encode_conversation, render_chat, sandbox
from graftwork.chat import moulds as moulds_module
from graftwork.chat.blind import MARK, render_blindly
from graftwork.chat.moulds import Moulds, Poured
from graftwork.errors import DataError
from graftwork.registry import get_registry

ROLES = [
    ("user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant", "user", "assistant", "user"),
    ("user", "assistant", "assistant"),
]
TEXTS = [
    "Hello there",
    "  leading and trailing \n",
    "{{ messages }} {% if x %}{# no #}",
    "{{ raise_exception('no') }}",
    "<s>",
    "</s>",
    "s>",
    "<",
    "</",
    "<|user|>",
    "|>",
    "[INST] x [/INST]",
    "",
    " \n ",
    "é 漢字 🙂 \u0301",
    "\ufdd00\ufdd1",
    "\ud800",
    "\x1c\x85 odd white space \u3000",
    "word " * 3000,
    "</think> a </think>",
    "\\n %s {} '\"",
]
LOOP = "{% for message in messages %}"
ANSWER = "{% if message.role == 'assistant' %}{% generation %}{{ TEXT }}</s>{% endgeneration %}"
FORMS = {
    "plain": LOOP + ANSWER + "{% else %}<|user|>{{ TEXT }}{% endif %}{% endfor %}",
    "set": LOOP
    + "{% set text = TEXT %}"
    + ANSWER.replace("TEXT", "text")
    + "{% else %}{{ text }}{% endif %}{% endfor %}",
    "block": LOOP
    + "{% set text %}<{{ TEXT }}>{% endset %}"
    + ANSWER.replace("TEXT", "text")
    + "{% else %}{{ text }}{% endif %}{% endfor %}",
    "macro": "{% macro write(text) %}a {{ text }} b{% endmacro %}"
    + LOOP
    + ANSWER.replace("TEXT", "write(TEXT)")
    + "{% else %}{{ write(TEXT) }}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(text='') %}"
    + LOOP
    + "{% set ns.text = TEXT ~ '!' %}"
    + ANSWER.replace("TEXT", "ns.text")
    + "{% else %}{{ ns.text }}{% endif %}{% endfor %}",
}
WRITES = [
    "message['content']",
    "message.content",
    "message.get('content')",
    "message['content'] | trim",
    "message['content'].strip()",
    "message.content.rstrip().lstrip('\\n ')",
    "(' x' + message.content + '\\n ') | trim",
    "('  ' + message.content + '\\n ') | trim",
    "('  ' + message.content + ' y ').lstrip()",
    "(message.content + message.content).strip()",
    "message.content | default('', true)",
    "(message.content or 'none')",
    "(message.content if message.content is string else 'parts')",
    "(message.content if 'tool_calls' not in message else '')",
    "('a' ~ loop.index ~ message.content)",
    "(messages | selectattr('content') | list | last).content ~ message.content",
    "(loop.previtem.content if loop.previtem is defined else '') ~ message.content",
    "messages[loop.index0:][0].content",
    "(bos_token + message.content + strftime_now('%Y'))",
]
LOOKS = [
    "(message.content if message.content == 'Hello there' else 'x')",
    "('a' if message.content != 'Hello there' else message.content)",
    "('a' if message.content < 'b' else 'c') ~ message.content",
    "('a' if 'think' in message.content else 'c') ~ message.content",
    "('a' if message.content in 'Hello there' else 'c') ~ message.content",
    "('a' if message.content in ['Hello there'] else 'c') ~ message.content",
    "('a' if 'Hello' in [message.content] else 'c') ~ message.content",
    "('a' if message == messages[0] else 'c') ~ message.content",
    "('a' if message.content is eq('Hello there') else 'c') ~ message.content",
    "('a' if message.content is in(['Hello there']) else 'c') ~ message.content",
    "('a' if message.content is lower else 'c') ~ message.content",
    "message.content ~ message.content | length",
    "message.content ~ message | length ~ message.content | count",
    "message.content | upper",
    "message.content | replace('H', 'J')",
    "message.content | tojson",
    "message | tojson",
    "message | string",
    "message",
    "[message.content]",
    "('%s' % message.content)",
    "'%s' | format(message.content)",
    "'{}'.format(message.content)",
    "message.content.format()",
    "message.content * 2",
    "message.content.split('</think>')[-1]",
    "message.content.replace('a', 'b')",
    "message.content.strip('H')",
    "(message.content | trim).upper()",
    "message.content.startswith('H') ~ message.content",
    "'Hello there'.startswith(message.content) ~ message.content",
    "message.content[0] ~ message.content",
    "message.content[1:]",
    "message.content[::-1]",
    "message.content | first ~ message.content",
    "message.content | list | length ~ message.content",
    "message.content | reverse",
    "[message.content, 'a'] | join",
    "','.join([message.content, 'a'])",
    "[message.content, 'a'] | sort | first",
    "[message.content].index('abc') ~ message.content",
    "{message.content: 1}['Hello there'] ~ message.content",
    "{'Hello there': 'a'}[message.content] ~ message.content",
    "{'Hello there': 'a'}.get(message.content) ~ message.content",
    "messages | selectattr('content', 'equalto', 'Hello there') | list | length ~ message.content",
    "messages | map(attribute='content') | map('upper') | list | last",
    "messages | map(attribute='content.0') | list | length ~ message.content",
    "messages | groupby('content') | length ~ message.content",
    "message.content | int ~ message.content",
    "loop.changed(message.content) ~ message.content",
    "message.content | random ~ message.content",
    "message.content | escape",
    "('<' | safe) + message.content",
    "dict(a=message.content)",
    "namespace(a=message.content)",
    "raise_exception(message.content)",
    "range(message.content | length) | list | length ~ message.content",
    "message.content | urlencode",
    "message.content | wordcount ~ message.content",
]
STATEMENTS = [
    "{% for letter in messages[0].content %}{{ letter }}{% endfor %}",
    "{% for letter in messages[0].content if letter != ' ' %}{{ letter }}{% endfor %}",
    "{% for a, b, c in [messages[0].content] %}{{ a }}{% endfor %}",
    "{% set a, b, c = messages[0].content %}{{ b }}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "{% set text | upper %}{{ messages[0].content }}{% endset %}{{ text }}",
    "{% macro same(a) %}{{ a }}{% endmacro %}{% if same(messages[0].content) == 'Hello there' %}a{% endif %}",
    "{% set same %}{{ messages[0].content }}{% endset %}{% if same == 'Hello there' %}a{% endif %}",
    "{% macro all() %}{{ varargs }}{% endmacro %}{{ all(messages[0].content) }}",
    "{% macro all() %}{{ varargs[0] }}{% endmacro %}{{ all(*messages[0].content) }}",
    "{% autoescape true %}{{ messages[0].content }}{% endautoescape %}",
    "{% set ns = namespace(a=messages[0].content) %}{{ ns }}",
    "{% set ns = namespace(a=messages[0].content) %}{% if ns.a == 'Hello there' %}a{% endif %}",
    "{% set ns = namespace(a='') %}{% set ns.a = ns.a + messages[0].content %}{{ ns.a | length }}",
    "{% set ns = namespace(a=messages[0].content) %}{% for i in range(9) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
]


def poured(moulds: Moulds, messages: list[dict[str, str]]) -> Poured | None:
    return moulds.encode(tuple(one["role"] for one in messages), [one["content"] for one in messages])


def compare(tokenizer: Any, *, policy: str = "error", target: str = "all_assistant_turns", rounds: int = 40) -> int:
    """Random conversations against the plain way; gives how many were poured."""
    stops = frozenset(range(len(tokenizer)))
    moulds = Moulds(tokenizer, train_target=target, special_tokens_in_content=policy, stop_ids=stops, variables={})
    draw = random.Random(3)
    count = 0
    for _ in range(rounds):
        messages = [
            {"role": role, "content": "".join(draw.choices(TEXTS[:6] if draw.random() < 0.3 else TEXTS[:3], k=2))}
            for role in draw.choice(ROLES)
        ]
        messages[draw.randrange(len(messages))]["content"] = draw.choice(TEXTS)
        found = poured(moulds, messages)
        if found is None:
            continue
        encoded = encode_conversation(
            messages, tokenizer=tokenizer, train_target=target, special_tokens_in_content=policy
        )
        trained = [False] * len(found.input_ids)
        for start, end in found.trained:
            trained[start:end] = [True] * (end - start)
        assert found.input_ids == encoded.input_ids, messages
        assert trained == check_turns(encoded, stops).trained, messages
        count += 1
    return count


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("form", FORMS)
def test_templates_that_only_write(tokenizer: Any, form: str, write: str) -> None:
    tokenizer.chat_template = FORMS[form].replace("TEXT", write)
    assert compare(tokenizer, rounds=25) > 5


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("form", ["plain", "set", "macro"])
def test_templates_that_look_are_told(form: str, look: str) -> None:
    source = FORMS[form].replace("TEXT", f"({look})")
    assert render_blindly(source, ("user", "assistant"), {"bos_token": "<s>"}) is None


@pytest.mark.parametrize("statement", STATEMENTS)
def test_statements_that_look_are_told(statement: str) -> None:
    assert render_blindly(statement, ("user", "assistant"), {}) is None


@pytest.mark.parametrize("look", [*LOOKS, *STATEMENTS])
def test_what_looks_is_written_the_plain_way(tokenizer: Any, look: str) -> None:
    """None of the templates above is a typing error: the sandbox renders them."""
    source = FORMS["plain"].replace("TEXT", f"({look})") if look in LOOKS else look + FORMS["plain"]
    tokenizer.chat_template = source.replace("TEXT", "message.content")
    if "raise_exception" not in look:
        assert render_chat([{**one, "content": "abc"} for one in chat()], tokenizer=tokenizer)
    assert compare(tokenizer, rounds=6) == 0


def test_every_shipped_template(tokenizer: Any) -> None:
    registry = get_registry().chat_templates
    counts = {}
    for name in registry:
        tokenizer.chat_template = registry[name].path.read_text("utf-8")
        counts[name] = compare(tokenizer, policy="as_text", rounds=30)
    slow = {name for name in counts if counts[name] == 0}
    # Parts are encoded one by one; Qwen 3 looks for a chain of thought; llava and qwen2-vl go through parts.
    looks = {name for name in registry if registry[name].encoding == "parts"} | {"qwen3", "llava", "qwen2-vl-instruct"}
    assert slow <= looks


@pytest.mark.parametrize("policy", ["error", "as_text", "allow"])
@pytest.mark.parametrize("target", ["all_assistant_turns", "final_assistant_turn"])
def test_policies_and_targets(tokenizer: Any, policy: str, target: str) -> None:
    tokenizer.chat_template = FORMS["plain"].replace("TEXT", "message.content | trim")
    assert compare(tokenizer, policy=policy, target=target, rounds=120) > 20


def made(tokenizer: Any, **changes: Any) -> Moulds:
    options: dict[str, Any] = {
        "train_target": "all_assistant_turns",
        "special_tokens_in_content": "error",
        "stop_ids": [tokenizer.eos_token_id],
        "variables": {},
    }
    return Moulds(tokenizer, **{**options, **changes})


def chat(answer: str = "Hello") -> list[dict[str, str]]:
    return [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]


def test_what_the_plain_way_refuses_is_left_to_it(tokenizer: Any) -> None:
    tokenizer.chat_template = FORMS["plain"].replace("TEXT", "message.content")
    moulds = made(tokenizer)
    assert poured(moulds, chat()) is not None
    for answer in ("", " ", "</s>", "a <|user|> b", "\ud800"):
        assert poured(moulds, chat(answer)) is None
    assert poured(moulds, [{"role": "user", "content": "Hello"}]) is None
    assert poured(made(tokenizer, stop_ids=[]), chat()) is None
    tokenizer.chat_template = FORMS["plain"].replace("TEXT", "message.content").replace("<|user|>", "<s><s>")
    assert poured(made(tokenizer), chat()) is None


def test_a_control_token_made_of_two_texts_is_left_to_it(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}" + (
        "{% if m.role == 'user' %}<{{ m.content }}{% else %}{% generation %}{{ m.content }}</s>{% endgeneration %}"
        "{% endif %}{% endfor %}"
    )
    moulds = made(tokenizer)
    assert poured(moulds, chat()) is not None
    with_token = [{"role": "user", "content": "s> Hello"}, chat()[1]]
    assert poured(moulds, with_token) is None
    with pytest.raises(DataError, match="message number 1"):
        encode_conversation(with_token, tokenizer=tokenizer)


def test_a_dropped_message_is_left_to_it(tokenizer: Any) -> None:
    tokenizer.chat_template = LOOP + ANSWER.replace("TEXT", "message.content") + "{% endif %}{% endfor %}"
    assert poured(made(tokenizer), chat()) is None


def test_a_time_is_told_anew(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.chat_template = "{{ strftime_now('%H:%M') }}" + FORMS["plain"].replace("TEXT", "message.content")
    monkeypatch.setattr(sandbox, "strftime_now", lambda format: "23:59")
    moulds = made(tokenizer)
    sandbox._environment.cache_clear()
    sandbox.compiled.cache_clear()
    assert poured(moulds, chat()) is not None
    monkeypatch.setattr(sandbox, "strftime_now", lambda format: "00:00")
    assert poured(moulds, chat()) is None
    monkeypatch.undo()
    sandbox._environment.cache_clear()
    sandbox.compiled.cache_clear()


def test_a_text_that_might_meet_a_limit_is_left_to_it(tokenizer: Any) -> None:
    tokenizer.chat_template = FORMS["macro"].replace("TEXT", "message.content")
    moulds = made(tokenizer)
    assert poured(moulds, chat("a " * 20_000)) is not None
    assert poured(moulds, chat("a " * 60_000)) is None


def test_added_tokens_make_new_moulds(tokenizer: Any) -> None:
    from copy import deepcopy

    own = deepcopy(tokenizer)
    own.chat_template = FORMS["plain"].replace("TEXT", "message.content")
    moulds = made(own)
    assert poured(moulds, chat("a <new> b")) is not None
    own.add_special_tokens({"additional_special_tokens": ["<new>"]})
    assert poured(moulds, chat("a <new> b")) is None
    found = poured(moulds, chat())
    assert found is not None
    assert found.input_ids == encode_conversation(chat(), tokenizer=own).input_ids


def test_a_mould_that_is_not_the_template_is_thrown_away(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second net: the first conversation of a mould is written both ways."""
    tokenizer.chat_template = FORMS["plain"].replace("TEXT", "message.content")

    def wrong(*arguments: Any) -> Any:
        blind = render_blindly(*arguments)
        assert blind is not None
        return blind[0].replace("<|user|>", "<|system|>"), *blind[1:]

    monkeypatch.setattr(moulds_module, "render_blindly", wrong)
    assert poured(made(tokenizer), chat()) is None


def test_marks_lie_where_the_texts_do() -> None:
    source = "<s>{{ messages[0].content | trim }} - {{ messages[1].content }}"
    blind = render_blindly(source, ("user", "assistant"), {})
    assert blind is not None
    text, _, marks = blind
    assert MARK.sub("#", text) == "<s># - #"
    assert [marks.slots[int(number)].message for number in MARK.findall(text)] == [0, 1]
    template = TemplateSource(source=source, name=None, origin="a test")
    assert render_chat(chat(" Hello "), template=template) == "<s>Hello -  Hello "
