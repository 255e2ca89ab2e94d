"""Chat templates that reach beyond the conversation: by what they say, and by rendering them in our sandbox."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes

from graftwork.audit.finding import Finding
from graftwork.chat.limits import TemplateLimitError
from graftwork.chat.sandbox import compiled, render
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What leads from a value to its class, from a function to its module, and from there to everything
_WAYS_OUT = frozenset(
    {
        "mro",
        *("gi_frame", "gi_code", "cr_frame", "cr_code", "ag_frame", "ag_code", "tb_frame", "tb_next"),
        *("f_globals", "f_builtins", "f_locals", "func_globals", "func_code"),
    }
)
_DUNDER = re.compile(r"__[a-zA-Z]")
_BREAK_OUT = "a server that renders it without a sandbox (Jinja's own Environment does) would run what it reaches"
_REMEDY = "do not use this template: name one of `graft templates ls`, or ask the author"
_USER, _ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
_SYSTEM = {"role": "system", "content": "Be kind."}
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_CONVERSATIONS = ([_USER], [_SYSTEM, _USER, _ANSWER, _USER], [_USER, _ANSWER])


def check_template(source: str, file: str, key: str) -> Iterator[Finding]:
    """One template. What is found by reading it is not tried."""
    try:
        compiled(source)
        found = list(_said(source))
    except (UsageError, RecursionError) as error:
        yield _finding("note", file, key, "", f"no template: {error}", "mend it, or name another template")
        return
    if not found:
        found = list(_done(source))
    for severity, value, what, remedy in found:
        yield _finding(severity, file, key, value, what, remedy)


def _said(source: str) -> Iterator[tuple[str, str, str, str]]:
    seen = set()
    for node in _parsed(source).find_all(nodes.Node):
        value = _reach(node)
        if value and value not in seen:
            seen.add(value)
            what = f"line {node.lineno} reaches beyond the conversation: {_BREAK_OUT}"
            yield "code", value, what, _REMEDY


def _parsed(source: str) -> nodes.Template:
    template = compiled(source)
    return template.environment.parse(source)


def _reach(node: nodes.Node) -> str | None:
    """The name by which a part of a template leaves plain data, None where it does not."""
    if isinstance(node, nodes.Getattr) and (node.attr.startswith("_") or node.attr in _WAYS_OUT):
        return node.attr
    if isinstance(node, nodes.Const) and isinstance(node.value, str) and _leads_out(node.value):
        return node.value[:80]
    if isinstance(node, nodes.Filter) and node.name == "attr" and not isinstance([*node.args, None][0], nodes.Const):
        return "attr(...) of a name that is put together"
    if isinstance(node, nodes.Include | nodes.Import | nodes.FromImport | nodes.Extends):
        return f"{type(node).__name__.lower()} of another file"
    return None


def _leads_out(name: str) -> bool:
    return name in _WAYS_OUT or (_DUNDER.match(name) is not None and (name.endswith("__") or name[2:].isalpha()))


def _done(source: str) -> Iterator[tuple[str, str, str, str]]:
    """What happens when it is rendered; that it refuses a conversation is its own affair."""
    for messages in _CONVERSATIONS:
        for tools in (None, [_TOOL]):
            try:
                render(source, _variables(messages, tools))
            except jinja2.exceptions.SecurityError as error:
                yield "code", str(error)[:120], f"rendered, it reaches beyond the conversation: {_BREAK_OUT}", _REMEDY
                return
            except (TemplateLimitError, RecursionError, MemoryError) as error:
                yield "lie", "", f"it would hang or fill a server's memory: {error}", _REMEDY
                return
            except Exception:  # noqa: S112 - whatever the author's own words raise
                continue


def _variables(messages: list[dict[str, str]], tools: list[Any] | None) -> dict[str, Any]:
    return {
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
    }


def _finding(severity: str, file: str, key: str, value: str, what: str, remedy: str) -> Finding:
    return Finding(severity=severity, file=file, key=key, value=value, what=what, remedy=remedy)  # type: ignore[arg-type]
