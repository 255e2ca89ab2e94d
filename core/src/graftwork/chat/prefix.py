"""The assistant's turns in a template that does not mark them: found by rendering up to each of them.

What the template writes for the messages before a turn, with the generation prompt, is what the model is given;
what comes after it, up to the end of the turn, is what it has to write. Both must be prefixes of the whole
text, and end where a token ends. A text that the template closes every conversation with, unless it asks for an
answer, is no part of a turn in the middle. That the text between them is the turn's, and only the turn's, is tried on a
conversation of the same shape with a word of its own for each message: a template that writes the messages in
another order could give prefixes by chance. Where anything of this does not hold the turns are not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.chat.render import probe_messages, probe_word, render
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graftwork.chat.pieces import Tokens
    from graftwork.chat.template import TemplateSource

Span = tuple[int, int]


def spans_by_prefixes(
    template: TemplateSource,
    messages: list[dict[str, Any]],
    variables: Mapping[str, Any],
    text: str,
    tokens: Tokens,
    encode: Callable[[str], Tokens],
) -> list[Span]:
    """The character spans of the assistant's turns in ``text``, whose tokens are ``tokens``.

    ``encode`` gives the tokens of another text. Raises :class:`~graftwork.errors.DataError` with the reason where
    the turns cannot be told for certain.
    """
    spans = _spans(template, messages, variables, text, encode)
    for index, (start, end) in spans.items():
        if template.encoding == "whole" and tokens.ids[: len(begun := encode(text[:start]).ids)] != begun:
            raise _unknown(
                template, index, f"its first token merges with the prompt before it ({text[:start][-20:]!r})"
            )
        for place, what in ((start, "first"), (end, "last")):
            if any(first < place < last for first, last in zip(tokens.starts, tokens.ends, strict=True)):
                raise _unknown(template, index, f"its {what} token merges with the text beside it")
    _require_own_words(template, messages, variables, encode)
    return list(spans.values())


def _spans(
    template: TemplateSource,
    messages: list[dict[str, Any]],
    variables: Mapping[str, Any],
    text: str,
    encode: Callable[[str], Tokens],
) -> dict[int, Span]:
    spans = {}
    for index in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        before = _part(template, messages[:index], variables, index, prompt=True)
        after = _part(template, messages[: index + 1], variables, index)
        if not text.startswith(after):
            asked = _part(template, messages[: index + 1], variables, index, prompt=True)
            after = _beginning_of_both(after, asked, encode)
        for part in (before, after):
            if not text.startswith(part):
                raise _unknown(
                    template,
                    index,
                    f"what is rendered up to there ends in {part[-30:]!r}, and the whole goes on otherwise",
                )
        if len(after) < len(before):
            raise _unknown(template, index, "the generation prompt is longer than the turn with what is before it")
        spans[index] = (len(before), len(after))
    return spans


def _part(
    template: TemplateSource,
    messages: list[dict[str, Any]],
    variables: Mapping[str, Any],
    index: int,
    *,
    prompt: bool = False,
) -> str:
    if not messages:
        raise _unknown(template, index, "there is no message before it to render")
    try:
        return render(template, messages, {**variables, "add_generation_prompt": prompt})[0]
    except DataError as error:
        raise _unknown(template, index, str(error)) from None


def _beginning_of_both(closed: str, asked: str, encode: Callable[[str], Tokens]) -> str:
    """The tokens that a conversation has in common whether it is closed or asks for an answer; ``closed`` where
    it is the beginning of the other, and so has no text of its own that closes it.
    """
    ours, theirs = encode(closed), encode(asked)
    pairs = zip(ours.ids, theirs.ids, strict=False)
    shared = next((i for i, (our, their) in enumerate(pairs) if our != their), len(ours.ids))
    if not 0 < shared < min(len(ours.ids), len(theirs.ids)):
        return closed
    return closed[: ours.ends[shared - 1]]


def _require_own_words(
    template: TemplateSource,
    messages: list[dict[str, Any]],
    variables: Mapping[str, Any],
    encode: Callable[[str], Tokens],
) -> None:
    probes = probe_messages(messages)
    try:
        text, _ = render(template, probes, variables)
    except DataError:
        return  # it refuses such texts, which says nothing of the real ones
    spans = _spans(template, probes, variables, text, encode)
    words = {index: probe_word(index) for index, message in enumerate(messages) if message.get("content")}
    for index, (start, end) in spans.items():
        turn = text[start:end]
        other = next((messages[i]["role"] for i, word in words.items() if i != index and word in turn), None)
        if other is not None:
            raise _unknown(template, index, f"it writes the text of a {other} message there")
        if index in words and words[index] not in turn and words[index] in text:
            raise _unknown(template, index, "it writes the text of that message elsewhere")


def _unknown(template: TemplateSource, index: int, reason: str) -> DataError:
    return DataError(
        f"chat template {template.label} does not mark the assistant's text with {{% generation %}}, and where message "
        f"number {index + 1} lies cannot be told: {reason}. Use a template with the marks"
    )
