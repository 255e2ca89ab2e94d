"""What a hostile template may not do: reach Python, hang, or fill the memory."""

from __future__ import annotations

from datetime import datetime
from time import monotonic

import pytest

from graftwork import render_chat
from graftwork.chat import limits
from graftwork.errors import UsageError

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['os'].getpid() }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_python_is_out_of_reach(template: str) -> None:
    with pytest.raises(UsageError):
        text = render_chat(MESSAGES, template=template + "{{ messages[0].content }}")
        # Jinja lets an unsafe attribute be undefined, which prints as nothing.
        assert text == "Hello"
        raise UsageError("nothing came out")


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
        "{% macro m(n) %}{{ m(n - 1) if n }}{{ m(n - 1) if n }}{% endmacro %}{{ m(60) }}",
    ],
)
def test_endless_work_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STEPS", 20_000)
    with pytest.raises(UsageError, match=r"more than 20,000 steps|maximum recursion"):
        render_chat(MESSAGES, template=template)


def test_slow_work_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", -1.0)
    with pytest.raises(UsageError, match="was stopped: it took longer than -1 s; use another template"):
        render_chat(MESSAGES, template="{% for a in range(999) %}{% endfor %}")


@pytest.mark.parametrize(
    "expression",
    [
        "'a' * 10 ** 9",
        "[0] * 10 ** 9",
        "10 ** (10 ** 10)",
        "'a' | center(10 ** 9)",
        "'a'.ljust(10 ** 9)",
        "'a' | indent(10 ** 9, first=true)",
        "'%1000000000d' % 1",
        "'%1000000000d' | format(1)",
        "'%*d' | format(1000000000, 1)",
        "'{:1000000000}'.format(1)",
        "'{:{}}'.format(1, 1000000000)",
        "('a' * 9000).replace('a', 'b' * 9000)",
        "('a' * 9000) | replace('a', 'b' * 9000)",
        "('a' * 9000).join('b' * 9000)",
        "range(9000) | map('string') | join('b' * 9000)",
        "{'a': 1} | tojson(indent=10 ** 9)",
        "strftime_now('%1000000000Y')",
        "lipsum(1000000)",
    ],
)
def test_a_huge_value_is_refused_before_it_is_made(expression: str) -> None:
    began = monotonic()
    with pytest.raises(UsageError):
        render_chat(MESSAGES, template="{{ " + expression + " }}")
    assert monotonic() - began < 5  # not a speed: made in full, one of these takes minutes or the memory


@pytest.mark.parametrize(
    "step",
    [
        "{% set ns.x = ns.x ~ ns.x %}",
        "{% set ns.x = ns.x + ns.x %}",
        "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
        "{% set ns.x = [ns.x, ns.x] | join %}",
        "{% set ns.x = ns.x * 2 %}",
    ],
)
def test_a_growing_text_is_stopped(step: str) -> None:
    step = step.replace(
        "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
        "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}",
    )
    template = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}" + step + "{% endfor %}"
    with pytest.raises(UsageError, match="8,000,000 characters"):
        render_chat(MESSAGES, template=template)


def test_ordinary_work_is_not_stopped() -> None:
    messages = [{"role": "user", "content": "word " * 2000}] * 200
    template = (
        "{% for m in messages %}{% for n in messages %}{% endfor %}{{ m.content | trim | indent(2) }}"
        "{{ m | tojson(indent=4) }}{{ '%05d' | format(loop.index) }}{{ m.content.split(' ') | join('_') }}{% endfor %}"
    )
    assert len(render_chat(messages, template=template)) > 4_000_000


def test_what_transformers_offers_is_there() -> None:
    template = (
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{{ {'b': '<é>'} | tojson }}{{ dict(a=1) | tojson }}{{ strftime_now('%Y') }}{{ messages[0].content }}"
    )
    year = datetime.now().strftime("%Y")
    assert render_chat(MESSAGES, template=template) == '01{"b": "<é>"}{"a": 1}' + year + "Hello"
