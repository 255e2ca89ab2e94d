"""The assistant's turns in a template that does not mark them: found by rendering up to each of them.

What the template writes for the messages before a turn, with the generation prompt, is what the model is given;
what comes after it, up to the end of the turn, is what it has to write. Both must be prefixes of the whole
text, and the tokens of the first a prefix of its tokens. Where that does not hold the turns are not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.chat.render import render
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graftwork.chat.template import TemplateSource

Span = tuple[int, int]


def spans_by_prefixes(
    template: TemplateSource,
    messages: list[dict[str, Any]],
    variables: Mapping[str, Any],
    text: str,
    encode: Callable[[str], list[int]],
) -> list[Span]:
    """The character spans of the assistant's turns in ``text``, which ``encode`` gives the token ids of.

    Raises :class:`~graftwork.errors.DataError` with the reason where they cannot be told for certain.
    """
    spans = []
    ids = encode(text)
    for index in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        before = _prefix(template, messages[:index], {**variables, "add_generation_prompt": True}, text, index)
        after = _prefix(template, messages[: index + 1], variables, text, index)
        if ids[: len(begun := encode(before))] != begun:
            raise _unknown(template, index, f"its first token merges with the prompt before it ({before[-20:]!r})")
        spans.append((len(before), len(after)))
    return spans


def _prefix(
    template: TemplateSource, messages: list[dict[str, Any]], variables: Mapping[str, Any], text: str, index: int
) -> str:
    if not messages:
        raise _unknown(template, index, "there is no message before it to render")
    try:
        part, _ = render(template, messages, variables)
    except DataError as error:
        raise _unknown(template, index, str(error)) from None
    if not text.startswith(part):
        raise _unknown(
            template, index, f"what is rendered up to there ends in {part[-30:]!r}, and the whole goes on otherwise"
        )
    return part


def _unknown(template: TemplateSource, index: int, reason: str) -> DataError:
    return DataError(
        f"chat template {template.label} does not mark the assistant's text with {{% generation %}}, and where message "
        f"number {index + 1} lies cannot be told: {reason}. Use a template with the marks"
    )
