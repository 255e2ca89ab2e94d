"""A row of a chat dataset to a conversation, in the shapes that public instruction sets have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from graftwork.errors import DataError
from graftwork.messages import Conversation, Message, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.data.readers import Row

SHAPES = "messages; instruction + output; prompt + completion (or response); question + answer"


def to_conversation(row: Row, messages_field: str = "messages") -> Conversation:
    """The row as a conversation. Raises :class:`DataError` with the row's place where it is none."""
    data = row.data
    if messages_field in data:
        return from_messages(data[messages_field], row.where, messages_field)
    if "instruction" in data and "output" in data:
        return from_alpaca(data, row.where)
    for prompt, completion in (("prompt", "completion"), ("prompt", "response"), ("question", "answer")):
        if prompt in data and completion in data:
            return turns(text_of(data, prompt, row.where), text_of(data, completion, row.where))
    raise DataError(f"{row.where}: fields {', '.join(data) or 'none'} are no known row; expected one of: {SHAPES}")


def tools_of(row: Row) -> list[dict[str, Any]] | None:
    """The tools that the row's conversation may call: a list in the field ``tools``, or the JSON of one."""
    tools = row.data.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError:
            raise DataError(f"{row.where}: tools is a text that is not JSON: {tools!r:.60}") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{row.where}: tools is no list of objects but {tools!r:.60}")
    return tools


def from_messages(messages: Any, where: str, field: str) -> Conversation:
    """OpenAI's and Oumi's shape: a list of ``{"role": ..., "content": ...}``."""
    try:
        conversation = Conversation.model_validate({"messages": messages})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([field, *(str(part) for part in first["loc"][1:])])
        value = repr(first["input"])[:60]
        raise DataError(f"{where}: {path}: {first['msg']} (got {value})") from None
    if not conversation.filter_messages(Role.ASSISTANT):
        raise DataError(f"{where}: no turn has the role assistant, so there is nothing to learn; remove the row")
    return conversation


def from_alpaca(data: Mapping[str, Any], where: str) -> Conversation:
    """Alpaca's shape; ``input`` follows the instruction after an empty line, as in LLaMA-Factory's reader."""
    question = text_of(data, "instruction", where)
    if data.get("input"):
        question = f"{question}\n\n{text_of(data, 'input', where)}"
    return turns(question, text_of(data, "output", where))


def text_of(data: Mapping[str, Any], field: str, where: str) -> str:
    """A field that must be a text."""
    value = data[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: {field} is {type(value).__name__} {value!r:.60}, not a text")
    return value


def turns(question: str, answer: str) -> Conversation:
    """One question, one answer."""
    return Conversation(
        messages=[Message(role=Role.USER, content=question), Message(role=Role.ASSISTANT, content=answer)]
    )
