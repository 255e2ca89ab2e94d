"""A row of a chat dataset to a conversation, in the shapes that public instruction sets have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from graftwork.errors import DataError
from graftwork.messages import Conversation, Message, Role

if TYPE_CHECKING:
    from graftwork.data.readers import Row

SHAPES = (
    "messages; conversations (ShareGPT); instruction + output; prompt + completion (or response); question + answer "
    "(or response); query + response; input + output"
)
TURNS = ("messages", "conversation", "conversations", "dialogue")
"""Where a row has its list of turns."""
ALPACA = (("instruction", "input", "output"), ("instruction", "context", "response"))
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
)
QUESTIONS = ("instruction", "prompt", "question", "query", "input")
"""Where a row has what is asked."""
CONTEXT = "context"
"""What a question is asked about, as in Dolly's rows and in those of closed questions."""
SYSTEM = ("system", "system_prompt")
"""Where a row has its system message, if not among its turns."""
TOOLS = ("tools", "functions")
"""Where a row has the tools that may be called; the second is OpenAI's older one."""
JSON_OPENS = ("[", "{")
"""How the JSON of a list or an object begins."""

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "function_call": "assistant",
    "function-call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
    "function-response": "tool",
}
"""Who speaks, under ShareGPT's, LLaMA-Factory's, ms-swift's and OpenAI's names."""
PLAIN_ROLES = ("user", "assistant", "system")
"""Roles that nothing but a text comes with."""
CALL = "function_call"
"""The key of OpenAI's older call of a tool, and one of the speakers that say nothing but calls."""
CALLERS = (CALL, "function-call", "tool_call")
"""Who says nothing but calls: the JSON of one, or of a list of them."""


def to_conversation(row: Row, messages_field: str | None = None) -> Conversation:
    """The row as a conversation. Raises :class:`DataError` with the row's place where it is none, or could be two.

    Fields that are null or empty count as not there: a table with rows of several shapes has them. ``messages_field``
    is the name of the field with the turns; None is whichever of :data:`TURNS` is there.
    """
    data, where = row.data, row.where
    messages = messages_of(data, where, messages_field)
    if messages is None:
        from graftwork.data.misplaced import misplaced

        why = misplaced(data, "chat") or f"no known row; expected one of: {SHAPES}"
        raise DataError(f"{where}: fields {', '.join(data) or 'none'} are {why}")
    conversation = Conversation(messages=messages)
    if not conversation.filter_messages(Role.ASSISTANT):
        raise DataError(f"{where}: no turn has the role assistant, so there is nothing to learn; remove the row")
    return conversation


def plain_turns(row: Row, messages_field: str | None = None) -> tuple[tuple[str, ...], list[str]] | None:
    """The roles and the texts of a row that is a list of messages and nothing else that a conversation is made of;
    None is any other row, right or wrong, for :func:`to_conversation` and :func:`tools_of`.
    """
    data = row.data
    turns = data.get(messages_field or TURNS[0]) if type(data) is dict else None
    others = (*SYSTEM, *TOOLS) if messages_field else (*SYSTEM, *TOOLS, *TURNS[1:])
    if type(turns) is not list or any(data.get(field) for field in others):
        return None
    roles, texts = [], []
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2:
            return None
        role, text = turn.get("role"), turn.get("content")
        if type(role) is not str or role not in PLAIN_ROLES or type(text) is not str:
            return None
        roles.append(role)
        texts.append(text)
    return tuple(roles), texts


def texts_of(conversation: Conversation) -> tuple[tuple[str, ...], list[str]] | None:
    """The roles and the texts of a conversation that has nothing else, and each answer of which is trained; None of
    any other.
    """
    roles, texts = [], []
    for message in conversation.messages:
        more = message.name is not None or message.tool_calls is not None or message.tool_call_id is not None
        if more or message.weight == 0 or not isinstance(message.content, str):
            return None
        roles.append(str(message.role))
        texts.append(message.content)
    return tuple(roles), texts


def messages_of(data: Mapping[str, Any], where: str, messages_field: str | None = None) -> list[Message] | None:
    """The turns of the row, with the text of its field ``system`` before them; None where its shape is unknown.

    Raises :class:`DataError` where there is no ``messages_field``: another field than the one that was asked for would
    be trained on, and nobody would know.
    """
    require_field(data, messages_field, where)
    messages = _messages_of(data, where, messages_field)
    return [*system_of(data, where), *messages] if messages and messages[0].role is not Role.SYSTEM else messages


def require_field(data: Mapping[str, Any], messages_field: str | None, where: str) -> None:
    """Raises :class:`DataError` where the row has no field of the name that the configuration gives. One that is there
    and empty is that of a table with rows of several shapes.
    """
    if messages_field is not None and messages_field not in data:
        raise DataError(
            f"{where}: dataset_kwargs.messages_field is {messages_field!r}, and the row's fields are "
            f"{', '.join(data) or 'none'}; name the one that holds the turns, or leave messages_field out"
        )


def system_of(data: Mapping[str, Any], where: str) -> list[Message]:
    """The system message that stands beside the turns of a row, if there is one."""
    fields = [field for field in SYSTEM if data.get(field)]
    texts = {text_of(data, field, where) for field in fields}
    if len(texts) > 1:
        raise DataError(f"{where}: {' and '.join(fields)} are both there, and not the same; remove one of them")
    return [said(Role.SYSTEM, text) for text in texts]


def _messages_of(data: Mapping[str, Any], where: str, messages_field: str | None) -> list[Message] | None:
    for known in (filled, given, Mapping.__contains__):
        if fields := turns_in(data, messages_field, known):
            return agreed({field: from_turns(data[field], where, field) for field in fields}, where)
        if shapes := texts_in(data, known):
            require_one_meaning(data, shapes, where)
            return from_texts(data, shapes[0], where)
    return None


def filled(data: Mapping[str, Any], field: str) -> bool:
    """Whether the field is there and has something in it: the cells of a CSV file are never null."""
    return bool(data.get(field))


def given(data: Mapping[str, Any], field: str) -> bool:
    """Whether the field is there and not null."""
    return data.get(field) is not None


# Which shape a row has

Known = Callable[[Mapping[str, Any], str], bool]
"""Whether a row has a field."""


def turns_in(data: Mapping[str, Any], messages_field: str | None, known: Known) -> list[str]:
    """The fields with a list of turns: ``messages_field`` alone where it is there, else those of :data:`TURNS`."""
    if messages_field is not None and known(data, messages_field):
        return [messages_field]
    fields = [field for field in TURNS if known(data, field)]
    return [field for field in fields if is_list(data[field])] or fields[:1]


def is_list(value: Any) -> bool:
    """Whether it is turns, or the JSON of some."""
    return isinstance(value, list | Mapping) or (isinstance(value, str) and value.lstrip()[:1] in JSON_OPENS)


def agreed(readings: Mapping[str, list[Message]], where: str) -> list[Message]:
    """The turns that all the fields hold."""
    first, *others = readings.values()
    if any(other != first for other in others):
        raise DataError(
            f"{where}: {' and '.join(readings)} each hold a conversation, and not the same one; name the right one "
            "in dataset_kwargs.messages_field, or remove the others"
        )
    return first


def texts_in(data: Mapping[str, Any], known: Known) -> list[tuple[str, ...]]:
    """The shapes without turns that a row has: of each its question's field (Alpaca's and Dolly's have one more) and,
    last, its answer's. One that is only a part of another is not listed.
    """
    shapes = [names for names in (*ALPACA, *PAIRS) if known(data, names[0]) and known(data, names[-1])]
    return [names for names in shapes if not any(set(names) < set(other) for other in shapes)]


def require_one_meaning(data: Mapping[str, Any], shapes: Sequence[tuple[str, ...]], where: str) -> None:
    """Raises :class:`DataError` where the row could be read in two ways, with another question or another answer."""
    if any(values_of(data, names) != values_of(data, shapes[0]) for names in shapes[1:]):
        listed = " or as ".join(f"{names[0]} + {names[-1]}" for names in shapes)
        raise DataError(f"{where}: it can be read as {listed}, and these differ; remove the fields that are not meant")


def values_of(data: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """Question, what stands behind it, and answer."""
    return data[names[0]], [data[field] for field in behind(data, names[0])], data[names[-1]]


def from_texts(data: Mapping[str, Any], names: tuple[str, ...], where: str) -> list[Message]:
    """A question and its answer, whose fields are the first and the last of ``names``."""
    return [*asked_in(data, names[0], where), *said_by(Role.ASSISTANT, data, names[-1], where)]


# What is asked


def asked_in(data: Mapping[str, Any], question: str, where: str) -> list[Message]:
    """The turns before the answer: those of ``history``, and the question with what stands behind it after an empty
    line. A question that is a list of turns (TRL's) is whole.

    Raises :class:`DataError` where the row has another text of the kind, which would be in none of them.
    """
    if isinstance(data[question], list):
        require_alone(data, question, where)
        return from_turns(data[question], where, question)
    asked = text_of(data, question, where)
    fields = behind(data, question)
    texts = {text_of(data, field, where).strip(): field for field in fields}
    if len(texts) > 1:
        raise DataError(
            f"{where}: {' and '.join(fields)} both stand beside {question}, and are not the same; join them in one "
            "field, or remove the one that is not meant"
        )
    # A prompt that was put together from the context has it already; Alpaca's input is joined whatever it says.
    whole = [asked, *(data[field] for text, field in texts.items() if question == ALPACA[0][0] or text not in asked)]
    require_all_said(data, question, "\n\n".join(whole), where)
    return [*earlier(data.get("history"), where), said(Role.USER, "\n\n".join(whole))]


def require_alone(data: Mapping[str, Any], question: str, where: str) -> None:
    """Raises :class:`DataError` where something stands beside turns that has no place among them."""
    for field in (CONTEXT, "history"):
        if data.get(field):
            raise DataError(
                f"{where}: {question} is a list of turns, and {field} beside it would be lost; put it into the turns, "
                "or remove it"
            )


def behind(data: Mapping[str, Any], question: str) -> list[str]:
    """The fields with what the question is asked about that have something in them."""
    names = [shape[1] for shape in ALPACA] if question == ALPACA[0][0] else [CONTEXT]
    return [field for field in names if data.get(field)]


def require_all_said(data: Mapping[str, Any], question: str, asked: str, where: str) -> None:
    """Raises :class:`DataError` where another field of :data:`QUESTIONS` has a text that is no part of what is asked.
    One that has the question in it is the prompt that somebody made of it, which many public sets keep beside.
    """
    mine = str(data[question]).strip()
    for field in QUESTIONS:
        text = data[field].strip() if isinstance(data.get(field), str) else ""
        if text not in asked and not (mine and mine in text):
            raise DataError(
                f"{where}: {question} is what is asked, and the text in {field} would be lost; join the two in "
                f"{question} (or call them instruction and input), or remove {field}"
            )


# Shapes


def from_turns(turns: Any, where: str, field: str) -> list[Message]:
    """A list of turns under OpenAI's or ShareGPT's names, the JSON of one, or Oumi's object around one."""
    turns = unpacked(turns, where, field)
    if isinstance(turns, Mapping) and "messages" in turns:
        turns, field = turns["messages"], f"{field}.messages"
    if isinstance(turns, list):
        turns = joined_calls([to_turn(turn, f"{where}: {field}.{number}") for number, turn in enumerate(turns)], turns)
    try:
        return Conversation.model_validate({"messages": turns}).messages
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([field, *(str(part) for part in first["loc"][1:])])
        raise DataError(f"{where}: {path}: {first['msg']} (got {first['input']!r:.60})") from None


def earlier(history: Any, where: str) -> list[Message]:
    """LLaMA-Factory's ``history``: a list of questions with their answers."""
    messages: list[Message] = []
    pairs = history or []
    if not isinstance(pairs, list):
        raise DataError(f"{where}: history is {history!r:.60}, not a list of [question, answer]")
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"{where}: history.{number} is {pair!r:.60}, not [question, answer]")
        messages += [said(Role.USER, pair[0]), said(Role.ASSISTANT, pair[1])]
    return messages


def said_by(role: Role, data: Mapping[str, Any], field: str, where: str) -> list[Message]:
    """A text said by ``role``; a list of turns is what TRL's conversational sets have in its place."""
    if isinstance(data[field], list):
        return from_turns(data[field], where, field)
    return [said(role, text_of(data, field, where))]


def to_turn(turn: Any, where: str) -> Any:
    """A turn under OpenAI's names, without the keys that are null; what is no turn is left for the validation."""
    if not isinstance(turn, Mapping):
        return turn
    turn = {key: value for key, value in turn.items() if value is not None or key in ("content", "value")}
    if "from" in turn and "value" in turn:
        turn = {**without(turn, "from", "value"), **shared(turn, where)}
    elif is_caller(turn.get("role")) and "content" in turn:
        turn = {**without(turn, "role", "content"), **calling(turn["role"], turn["content"], f"{where}.content")}
    if isinstance(role := turn.get("role"), str):
        turn["role"] = role if role in CALLERS else ROLES.get(role, role)
    if isinstance(weight := turn.get("weight"), float) and weight.is_integer():
        turn["weight"] = int(weight)  # a table in which some are missing has them all as floats
    if isinstance(turn.get(CALL), Mapping):
        turn["tool_calls"] = [turn.pop(CALL)]
    if isinstance(calls := turn.get("tool_calls"), list):
        turn["tool_calls"] = [to_call(call) for call in calls]
    return turn


def without(turn: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The turn without some of its keys."""
    return {key: value for key, value in turn.items() if key not in keys}


def is_caller(speaker: Any) -> bool:
    """Whether it is one of :data:`CALLERS`."""
    return isinstance(speaker, str) and speaker in CALLERS


def shared(turn: Mapping[str, Any], where: str) -> dict[str, Any]:
    """ShareGPT's ``from`` and ``value`` under OpenAI's names."""
    speaker, value = turn["from"], turn["value"]
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise DataError(f"{where}.from: {speaker!r:.60} is nobody known; expected one of: {', '.join(ROLES)}")
    return calling(speaker, value, f"{where}.value") if is_caller(speaker) else {"role": speaker, "content": value}


def calling(speaker: str, value: Any, where: str) -> dict[str, Any]:
    """A turn that is the JSON of a call, or of a list of calls."""
    calls = value
    if isinstance(value, str):
        try:
            calls = json.loads(value)
        except json.JSONDecodeError:
            raise DataError(f"{where}: a {speaker} that is not JSON: {value!r:.60}") from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise DataError(f"{where}: a {speaker} has a name and arguments; got {value!r:.60}")
    return {"role": "assistant", "content": None, "tool_calls": calls}


def joined_calls(turns: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """The turns, those of :data:`CALLERS` that follow one another as one: ms-swift writes a turn for each of the calls
    that an answer makes at once, and no template has two answers in a row.
    """
    found: list[Any] = []
    before = False
    for turn, raw in zip(turns, given, strict=True):
        caller = isinstance(raw, Mapping) and (is_caller(raw.get("from")) or is_caller(raw.get("role")))
        if caller and before and without(found[-1], "tool_calls") == without(turn, "tool_calls"):
            found[-1] = {**found[-1], "tool_calls": [*found[-1]["tool_calls"], *turn["tool_calls"]]}
        else:
            found.append(turn)
        before = caller
    return found


def to_call(call: Any) -> Any:
    """A call as OpenAI has it, its arguments as an object: a template would write a text of JSON as JSON once more."""
    if not isinstance(call, Mapping):
        return call
    call = dict(call) if "function" in call else {"type": "function", "function": dict(call)}
    function = call["function"]
    if isinstance(function, Mapping) and isinstance(text := function.get("arguments"), str):
        try:
            arguments = json.loads(text)
        except json.JSONDecodeError:
            return call
        if isinstance(arguments, dict):
            call["function"] = {**function, "arguments": arguments}
    return call


def tools_of(row: Row) -> list[dict[str, Any]] | None:
    """The tools that the row's conversation may call: a list in one of its fields :data:`TOOLS`, or the JSON of one.

    One that is described by itself is put under ``function``, where templates look for it.
    """
    field = next((field for field in TOOLS if row.data.get(field)), TOOLS[0])
    tools = row.data.get(field)
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError:
            raise DataError(f"{row.where}: {field} is a text that is not JSON: {tools!r:.60}") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{row.where}: {field} is no list of objects but {tools!r:.60}")
    return [to_tool(tool) for tool in tools]


def to_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A bare description (``name``, ``parameters``) as OpenAI's ``{"type": "function", "function": ...}``."""
    if "function" not in tool and "name" in tool and "parameters" in tool:
        return {"type": "function", "function": tool}
    return tool


def unpacked(value: Any, where: str, field: str) -> Any:
    """A list or an object; a text that begins like one is read as JSON, which is all that a CSV file can hold."""
    if not isinstance(value, str) or value.lstrip()[:1] not in JSON_OPENS:
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        raise DataError(f"{where}: {field} is a text that is not JSON: {value!r:.60}") from None


def text_of(data: Mapping[str, Any], field: str, where: str) -> str:
    """A field that must be a text."""
    value = data[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: {field} is {type(value).__name__} {value!r:.60}, not a text")
    return value


def said(role: Role, text: str) -> Message:
    """One turn."""
    return Message(role=role, content=text)


# Answers with a verdict

VERDICTS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""Numbers with a point: a table whose column has gaps holds, and writes, them in the place of 1 and 0."""


def verdict_of(row: Row, messages_field: str | None = None) -> bool:
    """Whether the last turn of the row's conversation is a good answer, as its field ``label`` says (TRL's name): a
    boolean, 1 or 0, or one of these as the text of a table's cell, in any case.

    Raises :class:`DataError` with the row's place where there is no label, or the last turn is no answer to anything.
    """
    label = row.data.get("label")
    verdict = VERDICTS.get(str(label).strip().casefold()) if isinstance(label, str | int | float) else None
    if verdict is None:
        raise DataError(
            f"{row.where}: label is {label!r:.60}; each row says with label: true or false whether its answer is a "
            "good one (or give preference pairs, of which each answer is taken)"
        )
    roles = [message.role for message in to_conversation(row, messages_field).messages]
    if roles[-1] is not Role.ASSISTANT or len(roles) < 2:
        raise DataError(
            f"{row.where}: the label judges the last turn, which must be the assistant's answer to something; "
            f"its roles are {', '.join(roles)}"
        )
    return verdict
