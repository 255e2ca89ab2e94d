"""Control tokens that a conversation brings in its own texts, told from those that its template writes.

A rendered text does not say who wrote which character of it. Most conversations need no answer: the control tokens
in their text are those that the template writes for any conversation of that shape. For the others the template is
rendered once more, with letters in place of whatever in the messages could be a part of a control token: what is
still there was written by the template.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from graftwork.chat.render import render
from graftwork.chat.vocabulary import ListedTokens
from graftwork.errors import DataError
from graftwork.messages import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from graftwork.chat.pieces import Tokens
    from graftwork.chat.template import TemplateSource
    from graftwork.chat.vocabulary import Vocabulary

    Change = Callable[[str], str]

Policy = Literal["error", "as_text", "allow"]
POLICIES: tuple[Policy, ...] = ("error", "as_text", "allow")

WRITTEN_BY_USERS = ("messages", "tools", "documents")
ROLES = frozenset(role.value for role in Role)
_LETTER = "x"
# As many letters as the ids of tool calls that some templates insist on.
_NEUTRAL = _LETTER * 9


class Foreign(NamedTuple):
    """A control token in the rendered text that the template did not write, or not alone."""

    start: int
    end: int


def foreign_tokens(
    template: TemplateSource, variables: Mapping[str, Any], text: str, vocabulary: Vocabulary
) -> list[Foreign]:
    """Where in ``text`` a control token is made of what ``variables`` bring (``messages`` among them).

    Raises :class:`DataError` where that cannot be told.
    """
    expected = control_tokens_of(template, variables, vocabulary)
    if expected is not None and vocabulary.pattern.findall(text) == expected:
        return []
    if expected is None:
        expected = _tokens_of(template, variables, _neutral, vocabulary)
    masked = _render(template, variables, lambda value: masked_text(value, vocabulary))
    if masked is None or not _is_mask(masked, text):
        raise _untold(template, "it renders the conversation otherwise without them")
    kept = vocabulary.pattern.findall(masked)
    if expected not in (None, kept) and kept != _tokens_of(template, variables, _letters_for_marks, vocabulary):
        raise _untold(template, "it makes some of its control tokens out of them")
    matches = (match.span() for match in vocabulary.pattern.finditer(text))
    return [Foreign(start, end) for start, end in matches if masked[start:end] != text[start:end]]


def refusal(
    template: TemplateSource, variables: Mapping[str, Any], text: str, found: Sequence[Foreign], vocabulary: Vocabulary
) -> DataError:
    """What to say of the first of ``found``."""
    start, end = found[0]
    return DataError(
        f"{_place(template, variables, text, found[0], vocabulary)} {text[start:end]}, which the tokenizer takes for a "
        "control token: take it out of the text, or set special_tokens_in_content to as_text (it becomes plain text) "
        "or allow (it stays a control token)"
    )


def encode_apart(vocabulary: Vocabulary, text: str, found: Sequence[Foreign]) -> ListedTokens:
    """The tokens of ``text`` in which ``found`` are plain text.

    A tokenizer cuts a text at its control tokens and encodes what lies between them. It is cut here at those of the
    template only; between two of them the ids are the same as ever, unless a foreign one lies there.
    """
    hidden = text
    for start, end in found:
        hidden = hidden[:start] + _letters(hidden[start:end]) + hidden[end:]
    whole = vocabulary.encode(hidden)
    cuts = [i for i, index in enumerate(whole.ids) if index in vocabulary.control_ids]
    pieces: list[ListedTokens] = []
    first, begin = 0, 0
    for cut in [*cuts, len(whole.ids)]:
        end = whole.starts[cut] if cut < len(whole.ids) else len(text)
        inside = [token for token in found if begin <= token.start < end]
        between = _plain(vocabulary, text, begin, end, inside) if inside else _slice(whole, first, cut)
        pieces += [between, _slice(whole, cut, cut + 1)]
        first, begin = cut + 1, whole.ends[cut] if cut < len(whole.ids) else end
    return _joined(pieces)


def masked_text(value: str, vocabulary: Vocabulary) -> str:
    """``value`` with letters for every control token in it, and for what may become one beside other text: its end
    where one could begin, its beginning where one could end, the whole where it could be the middle of one.
    """
    value = vocabulary.pattern.sub(lambda match: _letters(match[0]), value)
    core = value.strip()
    parts = vocabulary.parts
    if not core:
        return value
    begin = value.index(core)
    head = next((n for n in range(min(parts.longest, len(core)), 0, -1) if core[:n] in parts.endings), 0)
    tail = next((n for n in range(min(parts.longest, len(core)), 0, -1) if core[-n:] in parts.beginnings), 0)
    if len(core) < parts.longest and any(core in token for token in vocabulary.control):
        head = len(core)
    stop = begin + len(core)
    value = value[:begin] + _letters(value[begin : begin + head]) + value[begin + head :]
    return value[: stop - tail] + _letters(value[stop - tail : stop]) + value[stop:]


# How the template would write the like


def control_tokens_of(
    template: TemplateSource, variables: Mapping[str, Any], vocabulary: Vocabulary
) -> list[str] | None:
    """The control tokens that the template writes for such a conversation; None where the texts have some of their
    own, or where it refuses neutral ones.
    """
    search = vocabulary.pattern.search
    try:
        shape = tuple((name, _shape(variables[name], search, name)) for name in WRITTEN_BY_USERS if name in variables)
    except _HoldsOneError:
        return None
    rest = {name: value for name, value in variables.items() if name not in WRITTEN_BY_USERS}
    key = (template.source, shape, repr(rest))
    if key not in vocabulary.expected:
        if len(vocabulary.expected) >= _REMEMBERED:
            vocabulary.expected.clear()
        vocabulary.expected[key] = _tokens_of(template, variables, _neutral, vocabulary)
    return vocabulary.expected[key]


_REMEMBERED = 1024


class _HoldsOneError(Exception):
    """A text has a whole control token in it."""


def _shape(value: Any, search: Callable[[str], Any], key: str) -> Any:
    """What a template can go by: everything but the texts."""
    if isinstance(value, str):
        if key == "role" and value in ROLES:
            return value
        if search(value):
            raise _HoldsOneError
        return value if key == "type" else bool(value)
    if isinstance(value, dict):
        if any(map(search, value)):
            raise _HoldsOneError
        return tuple([(name, _shape(item, search, name)) for name, item in value.items()])
    if isinstance(value, list):
        return tuple([_shape(item, search, "") for item in value])
    return value


def _tokens_of(
    template: TemplateSource, variables: Mapping[str, Any], change: Change, vocabulary: Vocabulary
) -> list[str] | None:
    """The control tokens in the text of the conversation with ``change`` made to its texts."""
    text = _render(template, variables, change)
    return None if text is None else vocabulary.pattern.findall(text)


def _neutral(value: str) -> str:
    return _NEUTRAL if value else ""


def _letters_for_marks(value: str) -> str:
    return re.sub(r"[^\w\s]", _LETTER, value)


def _render(template: TemplateSource, variables: Mapping[str, Any], change: Change) -> str | None:
    changed = {
        name: _changed(value, change, name) if name in WRITTEN_BY_USERS else value for name, value in variables.items()
    }
    try:
        return render(template, changed.pop("messages"), changed)[0]
    except DataError:
        return None


def _changed(value: Any, change: Change, key: str) -> Any:
    """``value`` with ``change`` made to each text that users write; roles and types of parts are the format's."""
    if isinstance(value, str):
        fixed = (key == "role" and value in ROLES) or (key == "type" and value.isidentifier())
        return value if fixed else change(value)
    if isinstance(value, dict):
        return {
            change(name) if not name.isidentifier() else name: _changed(item, change, name)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_changed(item, change, "") for item in value]
    return value


def _is_mask(masked: str, text: str) -> bool:
    return len(masked) == len(text) and all(
        theirs in (ours, _LETTER) for ours, theirs in zip(text, masked, strict=True)
    )


# Encoding


def _plain(vocabulary: Vocabulary, text: str, begin: int, end: int, inside: Sequence[Foreign]) -> ListedTokens:
    tokens = _encode_between(vocabulary, text, [begin, end])
    if vocabulary.control_ids.isdisjoint(tokens.ids):
        return tokens
    # A vocabulary that has the text of a control token as a piece of text, too: take its first letter for itself.
    return _encode_between(vocabulary, text, [begin, *(token.start + 1 for token in inside), end])


def _encode_between(vocabulary: Vocabulary, text: str, places: Sequence[int]) -> ListedTokens:
    pieces = []
    for begin, end in pairwise(places):
        ids, starts, ends = vocabulary.encode_plain(text[begin:end], within=begin > 0)
        pieces.append(ListedTokens(ids, [begin + place for place in starts], [begin + place for place in ends]))
    return _joined(pieces)


def _slice(tokens: Tokens, first: int, last: int) -> ListedTokens:
    return ListedTokens(tokens.ids[first:last], tokens.starts[first:last], tokens.ends[first:last])


def _joined(pieces: Sequence[ListedTokens]) -> ListedTokens:
    return ListedTokens(
        [index for piece in pieces for index in piece.ids],
        [place for piece in pieces for place in piece.starts],
        [place for piece in pieces for place in piece.ends],
    )


def _letters(text: str) -> str:
    return re.sub(r"\S", _LETTER, text)


# What to say


def _place(
    template: TemplateSource, variables: Mapping[str, Any], text: str, found: Foreign, vocabulary: Vocabulary
) -> str:
    """The message without whose text there is no such token."""
    token = text[found.start : found.end]
    for index, message in enumerate(variables["messages"]):
        masked = [*variables["messages"]]
        masked[index] = _changed(message, lambda value: masked_text(value, vocabulary), "")
        without = _render(template, {**variables, "messages": masked}, str)
        if without is not None and without[found.start : found.end] != token:
            verb = "holds" if any(token in part for part in _texts(message)) else "has a part of"
            return f"message number {index + 1} ({message['role']}) {verb}"
    return "the tools or documents hold"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _untold(template: TemplateSource, reason: str) -> DataError:
    return DataError(
        f"the messages hold texts of control tokens, and what chat template {template.label} wrote itself cannot be "
        f"told from them: {reason}. Take them out of the text, or set special_tokens_in_content to allow"
    )
