"""Many conversations of one template to tokens: the template is rendered once for all that have the same roles.

A conversation whose messages are texts, and whose template only writes them (:mod:`graftwork.chat.blind`), has the text
of its mould with its own texts in it. Ids and trained tokens are those of
:func:`~graftwork.chat.encode.encode_conversation` and :func:`~graftwork.chat.encode.check_turns`; whatever these would
not take as it stands, and whatever is not shown to be alike, is left to them.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from graftwork.chat import limits, sandbox
from graftwork.chat.blind import MARK, MOST_MARKS, render_blindly
from graftwork.chat.content import control_tokens_of
from graftwork.chat.encode import marked_spans, own_names, wanted_spans, write_chat
from graftwork.chat.render import given_names, template_of
from graftwork.chat.vocabulary import hf_tokenizer, vocabulary_of
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from graftwork.chat.blind import Marks, Moment, Slot
    from graftwork.chat.encode import Span
    from graftwork.chat.vocabulary import Vocabulary

_REMEMBERED = 4096
"""Moulds; a conversation of many turns hardly has the roles of another."""
_MOST_TURNS = 64


class Poured(NamedTuple):
    """The ids of a conversation, and the spans of its trained tokens."""

    input_ids: list[int]
    trained: list[Span]


class Mould(NamedTuple):
    """How conversations of some roles are written: literals with a place for each slot, and which of them are trained.

    ``control`` are the control tokens that the template writes, None where all are welcome; ``longest`` is the length
    of text up to which no limit of the sandbox can be met.
    """

    pieces: list[str]
    slots: list[tuple[int, Slot]]
    trained: list[Span]
    control: list[str] | None
    moments: list[Moment]
    longest: int


class Moulds:
    """Pours conversations of plain texts; ``stop_ids`` end a trained turn."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        train_target: str,
        special_tokens_in_content: str,
        stop_ids: Collection[int],
        variables: Mapping[str, Any],
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template_of(None, tokenizer)
        self._target = train_target
        self._policy = special_tokens_in_content
        self._stop_ids = frozenset(stop_ids)
        self._variables = variables
        self._bos = hf_tokenizer(tokenizer).bos_token_id
        self._vocabulary = vocabulary_of(tokenizer)
        self._known: dict[tuple[str, ...], Mould | None] = {}

    def encode(self, roles: tuple[str, ...], texts: Sequence[str]) -> Poured | None:
        """A conversation whose messages have these roles and texts; None where it is to be encoded the plain way."""
        vocabulary = vocabulary_of(self._tokenizer)
        if vocabulary is not self._vocabulary:  # tokens were added
            self._vocabulary, self._known = vocabulary, {}
        if not self._plain(texts, vocabulary):
            return None
        try:
            mould = self._known[roles]
        except KeyError:
            mould = self._known_from_now_on(roles, texts, vocabulary)
        filled = None if mould is None else pour(mould, texts)
        if mould is None or filled is None:
            return None
        text = "".join(filled)
        if len(text) > mould.longest or (
            mould.control is not None and vocabulary.pattern.findall(text) != mould.control
        ):
            return None
        return self._encoded(text, spans_of(mould, filled), vocabulary)

    def _plain(self, texts: Sequence[str], vocabulary: Vocabulary) -> bool:
        """Whether each text says something, and none a control token; a lone surrogate is no text."""
        search = vocabulary.pattern.search
        try:
            for text in texts:
                if not text.strip() or (self._policy != "allow" and search(text)):
                    return False
                if not text.isascii():
                    text.encode()
        except UnicodeEncodeError:
            return False
        return True

    def _encoded(self, text: str, spans: list[Span], vocabulary: Vocabulary) -> Poured | None:
        tokens = vocabulary.encode(text)
        ids = tokens.ids
        if ids[:1] == ids[1:2] and ids[:1] == [self._bos]:
            return None
        trained = []
        for start, end in spans:
            first, stop = tokens.within(start, end)
            said = start + len(text[start:end].rstrip())
            last = (stop if said == end else tokens.within(start, said)[1]) - 1
            if not first <= last < stop or ids[last] not in self._stop_ids:
                return None
            trained.append((first, last + 1))
        return Poured(ids, trained)

    def _known_from_now_on(self, roles: tuple[str, ...], texts: Sequence[str], vocabulary: Vocabulary) -> Mould | None:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        mould = self._known[roles] = self._made(roles, texts, vocabulary)
        return mould

    def _made(self, roles: tuple[str, ...], texts: Sequence[str], vocabulary: Vocabulary) -> Mould | None:
        if "assistant" not in roles or len(roles) > _MOST_TURNS or self._template.encoding != "whole":
            return None
        names = {
            **own_names(self._template, self._tokenizer),
            "tools": None,
            "add_generation_prompt": False,
            **self._variables,
        }
        blind = render_blindly(self._template.source, roles, given_names([], names))
        if blind is None:
            return None
        text, rendering, marks = blind
        spans = marked_spans(text, rendering.spans)
        written = {marks.slots[int(number)].message for number in MARK.findall(text)}
        if spans is None or written != set(range(len(roles))):
            return None
        control: list[str] | None = None
        if self._policy != "allow":
            messages = [{"role": role, "content": said} for role, said in zip(roles, texts, strict=True)]
            control = control_tokens_of(self._template, {**names, "messages": messages}, vocabulary)
            if control is None:
                return None
        wanted = wanted_spans(spans, self._target)
        longest = _longest(len(text) + rendering.emitted, marks)
        return self._proved(Mould(*_cast(text, wanted, marks), control, marks.moments, longest), roles, texts)

    def _proved(self, mould: Mould, roles: tuple[str, ...], texts: Sequence[str]) -> Mould | None:
        """The mould, if it gives the first conversation that it is made for as the template itself writes it."""
        messages = [{"role": role, "content": said} for role, said in zip(roles, texts, strict=True)]
        try:
            written = write_chat(
                messages,
                tokenizer=self._tokenizer,
                template=self._template,
                special_tokens_in_content=self._policy,
                **self._variables,
            )
        except DataError:
            return None
        filled = pour(mould, texts)
        spans = marked_spans(written.text, written.blocks)
        if filled is None or spans is None or "".join(filled) != written.text:
            return None
        return mould if spans_of(mould, filled) == wanted_spans(spans, self._target) else None


def pour(mould: Mould, texts: Sequence[str]) -> list[str] | None:
    """The pieces of the conversation's text; None where the template would tell another time by now."""
    for format, told in mould.moments:
        if sandbox.strftime_now(format) != told:
            return None
    pieces = mould.pieces.copy()
    for place, (message, strips) in mould.slots:
        text = texts[message]
        for strip in strips:
            text = strip(text)
        pieces[place] = text
    return pieces


def spans_of(mould: Mould, pieces: Sequence[str]) -> list[Span]:
    """The characters that are trained."""
    ends = list(accumulate(map(len, pieces), initial=0))
    return [(ends[first], ends[last]) for first, last in mould.trained]


def _cast(text: str, spans: Sequence[Span], marks: Marks) -> tuple[list[str], list[tuple[int, Slot]], list[Span]]:
    """The pieces of a text with marks, the places of the marks among them, and ``spans`` as numbers of pieces."""
    cuts = {0, len(text), *(place for span in spans for place in span)}
    cuts.update(place for match in MARK.finditer(text) for place in match.span())
    places = sorted(cuts)
    number = {place: index for index, place in enumerate(places)}
    pieces = [text[begin:end] for begin, end in pairwise(places)]
    found = ((index, MARK.fullmatch(piece)) for index, piece in enumerate(pieces))
    slots = [(index, marks.slots[int(match[1])]) for index, match in found if match]
    return pieces, slots, [(number[begin], number[end]) for begin, end in spans]


def _longest(fixed: int, marks: Marks) -> int:
    """The length of a text up to which the sandbox's limits are not met: a message stands in the output so many times,
    at most, and MOST_MARKS times in a value on the way to it. ``fixed`` are the characters beside the messages.
    """
    return (limits.MAX_SIZE - fixed) // (marks.written + MOST_MARKS + 1)
