"""What a chat template and a tokenizer must do together, proven on conversations before a model learns from them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from graftwork.chat.encode import check_turns, encode_conversation, token_roles
from graftwork.chat.probes import PROBES, Probe
from graftwork.chat.template import TemplateSource, find_template
from graftwork.chat.trial import LAST_ANSWER_ONLY, Finding, Setup, findings, readable
from graftwork.chat.vocabulary import hf_tokenizer
from graftwork.errors import DataError, GraftworkError
from graftwork.registry import get_registry
from graftwork.tokenizers.special import stop_token_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from graftwork.specs import ModelFamily

RULES = {
    "rendered": "a question and its answer, and your rows, can be rendered and encoded",
    "dropped": "no message, tool or tool call is dropped silently",
    "prefix": "appending a message never changes earlier text",
    "prompt": "the generation prompt is, token for token, how an answer begins in training",
    "marks": "each answer is trained from its first token to its last",
    "stop": "every trained turn ends in a token that generation stops at",
    "doubled": "no BOS, EOS or stop token is doubled",
    "padding": "padding is never trained",
    "vocabulary": "every control token that the template writes is one token",
}


class Violation(NamedTuple):
    """A rule that does not hold, why and what to do, and the conversations that show it."""

    rule: str
    message: str
    conversations: tuple[str, ...]


class ShownToken(NamedTuple):
    """A token to look at; no role is text around the messages."""

    id: int
    text: str
    role: str | None
    trained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateReport:
    """What was tried and found; ``notes`` are facts to know, ``tokens`` the last conversation that could be encoded
    of those without tools. ``excused`` are rules that the template is known not to keep, as its original does not.
    """

    template: TemplateSource
    conversations: tuple[str, ...]
    violations: tuple[Violation, ...]
    excused: tuple[str, ...]
    notes: tuple[str, ...]
    tokens: tuple[ShownToken, ...]

    @property
    def ok(self) -> bool:
        return not self.violations


def check_template(
    template: TemplateSource | str | None,
    tokenizer: Any,
    *,
    family: ModelFamily | None = None,
    rows: Iterable[tuple[str, Mapping[str, Any]]] = (),
    variables: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> TemplateReport:
    """Tries ``template`` (None is the tokenizer's own) on the built-in conversations and on ``rows``.

    Each of ``rows`` is a name and an object with ``messages`` and perhaps ``tools``. That a template refuses a
    built-in conversation is a note, as its format may have no place for a system message or for tools; a refused
    row is a violation. ``variables`` are the template's; ``generation_config`` may tell further stop tokens.
    """
    hf = hf_tokenizer(tokenizer)
    found = find_template(template, hf, family)
    stops = stop_token_ids(hf, family=family, template=found, generation_config=generation_config)
    setup = Setup(found, tokenizer, stops, dict(variables or {}))
    record = get_registry().chat_templates.get_or_none(found.name or "")
    supports = record.supports if record is not None else frozenset()
    builtin = [probe for probe in PROBES if "images" in supports or not probe.image]
    theirs = [Probe(name, list(row["messages"]), row.get("tools")) for name, row in rows]
    seen: dict[Finding, list[str]] = {}
    for number, probe in enumerate([*builtin, *theirs]):
        own = number >= len(builtin)
        for finding in _tried(setup, probe, required=own or number == 0, tools=own or "tools" in supports):
            seen.setdefault(finding, []).append(probe.name)
    notes = [finding.message for finding in seen if finding.rule == "note"]
    violations = [Violation(*finding, tuple(names)) for finding, names in seen.items() if finding.rule != "note"]
    excused: tuple[str, ...] = ()
    if record is not None and record.rewrites:
        excused = ("prefix",)
        notes.insert(0, f"{record.rewrites}, as in the original: {LAST_ANSWER_ONLY}")
    return TemplateReport(
        template=found,
        conversations=tuple(probe.name for probe in (*builtin, *theirs)),
        violations=tuple(violation for violation in violations if violation.rule not in excused),
        excused=excused,
        notes=tuple(notes),
        tokens=_shown(setup, builtin),
    )


def _tried(setup: Setup, probe: Probe, *, required: bool, tools: bool) -> Iterator[Finding]:
    """``required``: the template must take the conversation; ``tools``: and must not leave out tools."""
    try:
        for finding in findings(setup, probe):
            yield finding._replace(rule="dropped" if tools else "note") if finding.rule == "tools" else finding
    except GraftworkError as error:
        yield Finding("rendered", str(error)) if required else Finding("note", f"not tried: {probe.name}: {error}")


def _shown(setup: Setup, probes: Iterable[Probe]) -> tuple[ShownToken, ...]:
    given = {"tokenizer": setup.tokenizer, "template": setup.template, **setup.variables}
    for probe in reversed([probe for probe in probes if not probe.tools]):
        try:
            encoded = encode_conversation(probe.messages, **given)
            with suppress(DataError):  # without labels for white space after the stop, as in training
                encoded = check_turns(encoded, setup.stops)
            roles = token_roles(probe.messages, **given)
        except GraftworkError:
            continue
        return tuple(
            ShownToken(index, readable(setup.tokenizer, index), role[1] if role else None, trained)
            for index, role, trained in zip(encoded.input_ids, roles, encoded.trained, strict=True)
        )
    return ()
