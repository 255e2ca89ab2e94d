"""One conversation through a template and a tokenizer, and every way in which training on it would go wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from graftwork.chat.encode import encode_prompt, with_mask, write_chat
from graftwork.chat.render import (
    last_question,
    plain_messages,
    render,
    require_all_roles,
    special_tokens,
    trace,
)
from graftwork.chat.vocabulary import hf_tokenizer
from graftwork.errors import DataError, GraftworkError
from graftwork.tokenizers.special import token_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from graftwork.chat.encode import EncodedChat
    from graftwork.chat.probes import Probe
    from graftwork.chat.template import TemplateSource

LAST_ANSWER_ONLY = "train on the last answer only (train_target: final_assistant_turn)"
# How chat formats spell a control token, and how the outputs of one that is encoded in parts do.
MARKER = re.compile(r"<\|[^<>|\s]+\|>|<(?:start|end)_of_\w+>")
CONTROL = re.compile(r"\[/?[A-Z][A-Z_]*\]|</?\w+>")


class Finding(NamedTuple):
    """A rule of :data:`graftwork.chat.check.RULES` that does not hold, ``tools`` for tools that are left out, or
    ``note``; and what to say of it.
    """

    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Setup:
    """What all conversations of a check have in common."""

    template: TemplateSource
    tokenizer: Any
    stops: frozenset[int]
    variables: Mapping[str, Any]

    def named(self, index: int | None) -> str:
        return f"{readable(self.tokenizer, index)} ({index})"


def findings(setup: Setup, probe: Probe) -> Iterator[Finding]:
    """What is wrong with ``probe``. Raises :class:`GraftworkError` where the template refuses it."""
    rows = plain_messages(probe.messages)
    names = {**special_tokens(setup.tokenizer), "add_generation_prompt": False, "tools": probe.tools, **setup.variables}
    text, blocks = render(setup.template, rows, names)
    trial = _Trial(setup, probe, rows, names, text, sum(bool(block) for _, block in blocks))
    return trial.run()


def readable(tokenizer: Any, index: int | None) -> str:
    """A token's text with its white space visible: a dot for a space, letters for a line end."""
    hf = hf_tokenizer(tokenizer)
    token = hf.convert_ids_to_tokens(index) or ""
    text = token.replace("▁", " ") if "▁" in token else hf.decode([index])
    return "".join(_VISIBLE.get(character, character) for character in text)


_VISIBLE = {" ": "·", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


class _Trial(NamedTuple):
    """``names`` are the template's variables, ``text`` is what it rendered with them, ``marked`` how many answers it
    marked in it.
    """

    setup: Setup
    probe: Probe
    rows: list[dict[str, Any]]
    names: dict[str, Any]
    text: str
    marked: int

    def run(self) -> Iterator[Finding]:
        dropped = list(self.dropped())
        yield from dropped
        if dropped:
            return
        yield from self.unknown_tokens()
        broken = dict(self.earlier_text())
        yield from dict.fromkeys(broken.values())
        yield from self.tokens([index for index in self.answers() if index not in broken])

    # Text

    def dropped(self) -> Iterator[Finding]:
        try:
            require_all_roles(self.setup.template, self.rows, self.names, self.text)
        except DataError as error:
            yield Finding("dropped", str(error))
        yield from self.tools_left_out()
        if self.probe.image and self.rendered([_without_images(row) for row in self.rows]) == self.text:
            yield Finding("dropped", "the template leaves out images; choose one that supports images")

    def tools_left_out(self) -> Iterator[Finding]:
        if any(tool["function"]["name"] not in self.text for tool in self.probe.tools or ()):
            yield Finding("tools", "the template leaves out the tools that it is given; choose one that supports tools")
        alone = self.rendered(self.rows, tools=None) if self.probe.tools else self.text
        rows = [row for index, row in enumerate(self.rows) if not self.forgotten(index)]
        calls = [call["function"]["name"] for row in rows for call in row.get("tool_calls") or ()]
        if alone and any(name not in alone for name in calls):
            yield Finding("tools", "the template leaves out the assistant's tool calls; choose one that supports tools")

    def earlier_text(self) -> Iterator[tuple[int, Finding]]:
        """The answers before which, or up to which, the conversation was not rendered as it is in the whole."""
        answers = self.answers()
        for index, following in zip(answers, [*answers[1:], len(self.rows)], strict=True):
            others = (i for i in range(index, following) if self.rows[i]["role"] != "assistant")
            asked = self.rendered(self.rows[:index], add_generation_prompt=True)
            before, after = self.rendered(self.rows[:index]), self.rendered(self.rows[: next(others, following)])
            if not self.begins_with(before) or not self.begins_with(after):
                yield index, self.rewritten(before if not self.begins_with(before) else after)
            elif not self.text.startswith(asked):
                yield index, self.other_header(asked)

    def rewritten(self, before: str) -> Finding:
        place = _shared(before, self.text)
        return Finding(
            "prefix",
            f"a longer conversation does not begin as the shorter one did: {before[place:][:40]!r} becomes "
            f"{self.text[place:][:40]!r}. A model that is trained on the whole learns to answer what it will not be "
            f"asked: {LAST_ANSWER_ONLY}, or use a template that leaves earlier messages as they are",
        )

    def other_header(self, asked: str) -> Finding:
        place = _shared(asked, self.text)
        return Finding(
            "prompt",
            f"the generation prompt ends in {asked[place:][-40:]!r}, where the conversation has "
            f"{self.text[place:][:40]!r}: write both the same",
        )

    def begins_with(self, part: str) -> bool:
        """Whether the whole begins with ``part``, but for the end-of-text token that may close a conversation."""
        eos = hf_tokenizer(self.setup.tokenizer).eos_token
        closed = eos and part.endswith(eos) and self.text.endswith(eos)
        return self.text.startswith(part) or bool(closed and self.text.startswith(part[: -len(eos)]))

    def answers(self) -> list[int]:
        """Where the answers begin; those in a row are one where the template marks them as one."""
        roles = [row["role"] for row in self.rows]
        every = [i for i, role in enumerate(roles) if role == "assistant" and not self.forgotten(i)]
        runs = [i for i in every if not i or roles[i - 1] != "assistant"]
        return runs if self.marked == len(runs) else every

    def forgotten(self, index: int) -> bool:
        """Whether the message is a call of tools that the format leaves out, as its original does."""
        early = "tool" in self.setup.template.forgets and index < last_question(self.rows)
        return early and bool(self.rows[index].get("tool_calls"))

    def rendered(self, rows: list[dict[str, Any]], **changes: Any) -> str:
        """What the template writes for ``rows``; nothing where it does not take them."""
        try:
            return render(self.setup.template, rows, {**self.names, **changes})[0] if rows else ""
        except DataError:
            return ""

    # Tokens

    def unknown_tokens(self) -> Iterator[Finding]:
        absent = [text for text in self.control_texts() if token_id(self.setup.tokenizer, text) is None]
        plain = [text for text in absent if token_id(hf_tokenizer(self.setup.tokenizer), text) is not None]
        missing = [text for text in absent if text not in plain]
        if plain:
            named = ", ".join(self.setup.named(token_id(hf_tokenizer(self.setup.tokenizer), text)) for text in plain)
            yield Finding(
                "vocabulary",
                f"the template writes {named}, which the vocabulary has as a plain piece only, not among the added "
                "tokens: no text becomes it, it falls apart into several. Add it to the added_tokens of the "
                'tokenizer\'s file ("special": true, with the same id), or take the tokenizer of the instruct model',
            )
        if missing:
            yield Finding(
                "vocabulary",
                f"the tokenizer has no token {', '.join(missing)}, which the template writes: it would fall apart into "
                "several; use the template that belongs to this tokenizer",
            )

    def control_texts(self) -> list[str]:
        """The texts that must be one token. Such as ``<|user|>`` are plain text in some formats: where the
        vocabulary has none of them, only the template's stop texts must be there.
        """
        template = self.setup.template
        stops = [text for text in template.stop if text in self.text]
        if template.encoding == "parts":
            pieces = trace(template, self.rows, self.names)[1].pieces
            markers = [piece.text for piece in pieces if piece.kind == "markup" and CONTROL.fullmatch(piece.text)]
            return list(dict.fromkeys([*markers, *stops]))
        markers = MARKER.findall(self.text)
        known = any(token_id(self.setup.tokenizer, text) is not None for text in markers)
        return list(dict.fromkeys([*(markers if known else []), *stops]))

    def tokens(self, whole: Sequence[int]) -> Iterator[Finding]:
        """``whole`` are the answers whose prompts are beginnings of the whole text."""
        given = {"tokenizer": self.setup.tokenizer, "template": self.setup.template}
        try:
            written = write_chat(self.rows, **given, tools=self.probe.tools, **self.setup.variables)
        except GraftworkError as error:
            yield Finding("rendered", str(error))
            return
        doubled = list(self.doubled(written.tokens.ids))
        yield from doubled
        if doubled:
            return
        try:
            encoded = with_mask(written, self.setup.tokenizer, "all_assistant_turns")
        except GraftworkError as error:
            yield Finding("marks", str(error))
            return
        yield from self.marks(encoded, whole)
        yield from self.stops(encoded)
        yield from self.padding(encoded)

    def doubled(self, ids: Sequence[int]) -> Iterator[Finding]:
        hf = hf_tokenizer(self.setup.tokenizer)
        single = self.setup.stops | {hf.bos_token_id, hf.eos_token_id}
        for index in dict.fromkeys(one for one, other in pairwise(ids) if one == other and one in single):
            yield Finding(
                "doubled",
                f"the token {self.setup.named(index)} stands twice in a row: take one of the two out of the template",
            )

    def marks(self, encoded: EncodedChat, whole: Sequence[int]) -> Iterator[Finding]:
        answers = self.answers()
        if len(encoded.turns) != len(answers):
            yield Finding(
                "marks",
                f"{{% generation %}} marks {len(encoded.turns)} of {len(answers)} answers: put it around what each "
                "assistant message gives",
            )
            return
        for index, (start, _) in zip(answers, encoded.turns, strict=True):
            if index in whole and index:
                yield from self.beginning(self.asked(index), encoded.input_ids, start)

    def asked(self, index: int) -> list[int]:
        """The tokens with which the model is asked for the answer number ``index``."""
        given = {"tokenizer": self.setup.tokenizer, "template": self.setup.template, "tools": self.probe.tools}
        return encode_prompt(self.rows[:index], special_tokens_in_content="error", **given, **self.setup.variables)[1]

    def beginning(self, asked: list[int], trained: list[int], start: int) -> Iterator[Finding]:
        if trained[: len(asked)] != asked:
            place = next(i for i, index in enumerate(asked) if trained[i : i + 1] != [index])
            one, other = (" ".join(map(self.setup.named, ids[place : place + 3])) for ids in (asked, trained))
            yield Finding(
                "prompt",
                f"the generation prompt ends in the tokens {one}, but in training they are {other}: the tokenizer "
                "joins the prompt's end with the answer. End the prompt in a special token, or begin the answer with a "
                "character that is not joined",
            )
        elif start < len(asked):
            yield Finding(
                "marks",
                f"{{% generation %}} begins {len(asked) - start} tokens before the answer does: the model would learn "
                "to write its own prompt; put the header before {% generation %}",
            )
        elif start > len(asked):
            yield Finding(
                "marks",
                f"{{% generation %}} begins {start - len(asked)} tokens after the generation prompt ends: the model "
                "has to write them and would not learn to; put them into the prompt, or inside {% generation %}",
            )

    def stops(self, encoded: EncodedChat) -> Iterator[Finding]:
        wrong = [encoded.input_ids[last] for last in encoded.ends if encoded.input_ids[last] not in self.setup.stops]
        if wrong:
            known = ", ".join(map(self.setup.named, sorted(self.setup.stops))) or "none is known"
            yield Finding(
                "stop",
                f"a trained turn ends in {self.setup.named(wrong[0])}, which is no stop token ({known}): the model "
                "would not learn to stop. Write the end-of-turn token at its end, inside {% generation %}, or use a "
                "template whose end-of-turn token the tokenizer has",
            )

    def padding(self, encoded: EncodedChat) -> Iterator[Finding]:
        pad = hf_tokenizer(self.setup.tokenizer).pad_token_id
        places = {i for i, index in enumerate(encoded.input_ids) if index == pad and encoded.trained[i]}
        if places and pad in self.setup.stops and places <= set(encoded.ends):
            yield Finding("note", f"the pad token {self.setup.named(pad)} also ends a turn: it is learnt there only")
        elif places:
            yield Finding(
                "padding",
                f"the pad token {self.setup.named(pad)} is trained: take it out of the template's {{% generation %}}",
            )


def _without_images(row: dict[str, Any]) -> dict[str, Any]:
    content = row["content"]
    return (
        row if isinstance(content, str) else {**row, "content": [part for part in content if part["type"] != "image"]}
    )


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, pair in pairs if pair[0] != pair[1]), min(len(one), len(other)))
