"""The report of ``graft check``: parts, each with lines that are fine, worth knowing or wrong, and its facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "note", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at."""

    status: Status
    text: str


@dataclass(slots=True)
class Part:
    """One part of the report. ``facts`` are its numbers, for ``--json``: plain data."""

    name: str
    title: str
    lines: list[Line] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def ok(self, text: str) -> None:
        self.lines.append(Line("ok", text))

    def note(self, text: str) -> None:
        """Something that could not be looked at, and why; or a fact to know."""
        self.lines.append(Line("note", text))

    def warn(self, text: str) -> None:
        self.lines.append(Line("warn", text))

    def error(self, text: str) -> None:
        self.lines.append(Line("error", text))


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
