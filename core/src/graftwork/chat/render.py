"""Conversations to text, exactly as transformers' ``apply_chat_template`` would write it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jinja2

from graftwork.chat import sandbox
from graftwork.chat.limits import Rendering, TemplateLimitError
from graftwork.chat.template import TemplateSource, find_template, supporting
from graftwork.chat.vocabulary import hf_tokenizer
from graftwork.errors import DataError, UsageError
from graftwork.messages import ContentItem, Conversation, Message, Type

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

Messages = Conversation | Sequence[Message] | Sequence[Mapping[str, Any]]

SHOWN = 8
"""How many templates an error names."""
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render_chat(
    messages: Messages,
    *,
    template: TemplateSource | Path | str | None = None,
    tokenizer: Any = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool | None = None,
    **variables: Any,
) -> str:
    """The text of ``messages`` under ``template`` (a name, a file, Jinja text; None is the tokenizer's own, else its
    family's where that fits).

    ``variables`` are further names that the template may use, beside the tokenizer's special tokens. Without
    ``add_generation_prompt`` it is the template that decides; nearly all then write none. A role that the template
    leaves out is said in the log: the text is what the template writes. Raises
    :class:`~graftwork.errors.DataError` where it refuses the conversation.
    """
    found = template_of(template, tokenizer)
    names = {**special_tokens(tokenizer), "tools": tools, **variables}
    if add_generation_prompt is not None:
        names["add_generation_prompt"] = add_generation_prompt
    rows = plain_messages(messages)
    try:
        text, _ = render(found, rows, names)
    except DataError:
        # Few templates ask whether a key is none; most cannot bear one that is.
        given = messages.messages if isinstance(messages, Conversation) else messages
        rows = [{**_nulls(message), **row} for message, row in zip(given, rows, strict=True)]
        if all(None not in row.values() for row in rows):
            raise
        text, _ = render(found, rows, names)
    if (reason := left_out(found, rows, names, text)) is not None:
        logger.warning("%s", reason)
    return text


def render(
    template: TemplateSource, messages: list[dict[str, Any]], variables: Mapping[str, Any]
) -> tuple[str, list[tuple[int, str]]]:
    """The text and the ``{% generation %}`` blocks; what goes wrong is raised as an error for the user."""
    with _told(template, messages, variables):
        return sandbox.render(template.source, given_names(messages, variables))


def trace(
    template: TemplateSource, messages: list[dict[str, Any]], variables: Mapping[str, Any]
) -> tuple[str, Rendering]:
    """As :func:`render`, with the pieces that the text was written in, and for which message."""
    with _told(template, messages, variables):
        return sandbox.trace(template.source, given_names(messages, variables))


def given_names(messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> dict[str, Any]:
    """All that a template is given, as plain data."""
    return {"documents": None, **_plain(variables), "messages": messages}


@contextmanager
def _told(template: TemplateSource, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except TemplateLimitError as error:
        raise UsageError(f"chat template {template.label} was stopped: {error}; use another template") from None
    except jinja2.exceptions.SecurityError as error:
        raise UsageError(f"chat template {template.label} does what no template may: {error}") from None
    except UsageError as error:
        # It cannot be compiled
        raise UsageError(f"chat template {template.label} {str(error).removeprefix('the chat template ')}") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever the template's own words raise
        what = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
        roles = " ".join(str(message.get("role")) for message in messages) or "no messages"
        remedy = "; give it, or a tokenizer that has it" if str(error).endswith("_token' is undefined") else ""
        if variables.get("tools"):
            roles += ", and the tools of the row"
        if variables.get("tools") or any(message.get("tool_calls") for message in messages):
            remedy += f". {takes_tools()}"
        raise DataError(f"chat template {template.label} refuses the conversation ({roles}): {what}{remedy}") from None


def template_of(which: TemplateSource | Path | str | None, tokenizer: Any) -> TemplateSource:
    """The template ``which``, else the tokenizer's own or its family's: only those need the one of transformers."""
    if which is not None and not (isinstance(which, str) and which.casefold() == "auto"):
        return find_template(which)
    return find_template(which, hf_tokenizer(tokenizer), getattr(tokenizer, "family", None))


def special_tokens(tokenizer: Any) -> dict[str, str]:
    """The named special tokens of the tokenizer (``bos_token``, ...) that it has; texts."""
    return {} if tokenizer is None else dict(hf_tokenizer(tokenizer).special_tokens_map)


def plain_messages(messages: Messages) -> list[dict[str, Any]]:
    """Dictionaries of plain values, which is all that a template gets to see. Keys that are None are left out."""
    if isinstance(messages, Conversation):
        messages = messages.messages
    if not messages:
        raise DataError("the conversation has no messages; leave the row out or add one")
    return [_plain_message(message) for message in messages]


def _plain_message(message: Message | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(message, Message):
        content = None if message.content is None else _plain_content(message.content)
        plain = {"role": str(message.role), "content": content, "name": message.name}
        plain |= {"tool_calls": _plain(message.tool_calls), "tool_call_id": message.tool_call_id}
        return {key: value for key, value in plain.items() if value is not None}
    if not isinstance(message, Mapping) or "role" not in message:
        raise DataError(f"a message must be an object with 'role' and 'content', not {str(message)[:80]!r}")
    plain = {str(key): _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[key] for key in _REASONING if key in plain), None)
    if reasoning is not None:
        # Templates read either name, and transformers fills both.
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return plain


def _nulls(message: Any) -> dict[str, None]:
    """The keys of a message that are None."""
    return {str(key): None for key, value in message.items() if value is None} if isinstance(message, Mapping) else {}


def _plain_content(content: str | list[ContentItem]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if all(item.type is Type.TEXT for item in content):
        return "".join(item.content or "" for item in content)
    return [
        {"type": "text", "text": item.content or ""} if item.type is Type.TEXT else {"type": "image"}
        for item in content
    ]


def _plain(value: Any) -> Any:
    """``value`` rebuilt from JSON types: a richer object has methods that the sandbox does not know to be harmful."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


# What a template leaves out


def takes_tools() -> str:
    """Which of the registered templates support tools, in a sentence."""
    names = supporting("tools")
    more = f" and {len(names) - SHOWN} more (graft templates ls)" if len(names) > SHOWN else ""
    return f"Templates that support tools: {', '.join(names[:SHOWN])}{more}" if names else "No template here does"


def require_place_for_tools(
    template: TemplateSource, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> None:
    """Raises :class:`DataError` where tools or calls of tools are given, and the template does not speak of them."""
    given = {"tools": variables.get("tools"), "tool_calls": any(message.get("tool_calls") for message in messages)}
    for name, value in given.items():
        if value and name not in template.source:
            raise DataError(
                f"chat template {template.label} has no place for the {name} of the conversation, which would be left "
                f"out without a word; choose a template that supports tools, or take them out. {takes_tools()}"
            )


def require_all_roles(
    template: TemplateSource, messages: list[dict[str, Any]], variables: Mapping[str, Any], text: str
) -> None:
    """Raises :class:`DataError` where ``text`` lacks a message because the template drops its role."""
    if (reason := left_out(template, messages, variables, text)) is not None:
        raise DataError(reason)


def left_out(
    template: TemplateSource, messages: list[dict[str, Any]], variables: Mapping[str, Any], text: str
) -> str | None:
    """Which message ``text`` lacks because the template drops its role, with what to do.

    A template may change a text (strip a chain of thought, escape JSON); that is told from dropping it by
    rendering the same roles with a word in place of each text. What the format is declared to forget may lack.
    """
    last = last_question(messages)
    kept = [row for index, row in enumerate(messages) if index > last or row["role"] not in template.forgets]
    missing = [message for message in kept if any(part not in text for part in _texts(message))]
    if not missing:
        return None
    words = _probe(template, messages, variables)
    for index, message in enumerate(messages):
        if message in missing and words is not None and probe_word(index) not in words:
            return (
                f"chat template {template.label} drops the {message['role']} message number {index + 1} without a "
                f"word; choose a template that renders the role '{message['role']}', or leave such messages out"
            )
    return None


def last_question(messages: Sequence[Mapping[str, Any]]) -> int:
    """The place of the last message of a user, -1 where there is none."""
    return max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)


def probe_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation with a word of its own (:func:`probe_word`) for each message's text."""
    return [
        {**message, "content": _in_place(message, probe_word(index))} if message.get("content") else message
        for index, message in enumerate(messages)
    ]


def probe_word(index: int) -> str:
    return f"zq{index}qz"


def _probe(template: TemplateSource, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str | None:
    try:
        return render(template, probe_messages(messages), variables)[0]
    except DataError:
        return None


def _in_place(message: Mapping[str, Any], word: str) -> Any:
    return [{"type": "text", "text": word}] if isinstance(message.get("content"), list) else word


def _texts(message: Mapping[str, Any]) -> Iterable[str]:
    content = message.get("content")
    parts = (
        [content]
        if isinstance(content, str)
        else [part.get("text") for part in content or [] if isinstance(part, dict)]
    )
    return [part.strip() for part in parts if isinstance(part, str) and part.strip()]
