"""The report of ``graft check``: parts, each with lines that are fine, worth knowing or wrong, and its facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

TELLING = 20
"""Characters from which on a sentence speaks of one thing: "expected a number" may be said of many."""
Status = Literal["ok", "note", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at. ``cause`` is the end of ``text`` that other parts may come upon as well."""

    status: Status
    text: str
    cause: str = ""


@dataclass(slots=True)
class Part:
    """One part of the report. ``facts`` are its numbers, for ``--json``: plain data."""

    name: str
    title: str
    lines: list[Line] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def ok(self, text: str) -> None:
        self.lines.append(Line("ok", text))

    def note(self, text: str, *, cause: str = "") -> None:
        """Something that could not be looked at, and why; or a fact to know."""
        self.lines.append(Line("note", text, cause))

    def warn(self, text: str) -> None:
        self.lines.append(Line("warn", text))

    def error(self, text: str, *, cause: str = "") -> None:
        self.lines.append(Line("error", text, cause))


def said_once(parts: Sequence[Part]) -> None:
    """Each cause stays where it is an error first, or else where it is first; elsewhere a note points there."""
    held: list[tuple[Part, Line]] = []
    lines = [(part, line) for part in parts for line in part.lines if line.cause]
    for part, line in sorted(lines, key=lambda one: one[1].status != "error"):
        if part is parts[0] or not any(same_cause(line.cause, other.cause) for _, other in held):
            held.append((part, line))
    kept = {id(line) for _, line in held}
    for part, line in lines:
        if id(line) not in kept:
            holder = next(other for other, known in held if same_cause(line.cause, known.cause))
            there = "as is said above" if holder is part else f"see {holder.title}"
            place = next(number for number, one in enumerate(part.lines) if one is line)  # an equal one may come first
            part.lines[place] = Line("note", line.text.removesuffix(line.cause) + there)


def same_cause(one: str, other: str) -> bool:
    """Whether one of them is the other, or within it with the field's name before it."""
    short, long = sorted((" ".join(one.split()), " ".join(other.split())), key=len)
    return short == long or (len(short) >= TELLING and short in long)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, part by part. ``source`` is the configuration file."""

    source: str
    parts: tuple[Part, ...]

    def count(self, status: Status) -> int:
        """How many lines of a kind there are."""
        return sum(line.status == status for part in self.parts for line in part.lines)

    @property
    def ok(self) -> bool:
        """Whether a run may begin."""
        return not self.count("error")

    def to_plain(self) -> dict[str, Any]:
        """What ``--json`` prints; the keys are documented in ``docs/check.md``."""
        parts = {
            part.name: {"lines": [{"status": line.status, "text": line.text} for line in part.lines], **part.facts}
            for part in self.parts
        }
        counts = {"errors": self.count("error"), "warnings": self.count("warn")}
        return {"config": self.source, "ok": self.ok, **counts, "parts": parts}
