"""What became of a dataset's rows: read, used, cut, dropped and rejected, with reasons and places.

An account is plain data that grows with the number of reasons, never with the number of rows, so a stream of any
length can carry it in its checkpoints.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork.data.samples import Sample

logger = logging.getLogger(__name__)

SHOWN = 10
"""How many kinds of bad rows one error lists."""
NAMED = 3
"""How many rows of one kind it names."""
KINDS = 200
"""How many kinds an account tells apart; the rows of further ones are counted together."""
ENOUGH = 100
"""Rows after which a share of rejected ones is judged although there are more to come."""

Verdict = Literal["used", "truncated", "dropped", "rejected"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row: ``sample`` is None where it was dropped or rejected, ``reason`` empty where used."""

    where: str
    sample: Sample | None
    verdict: Verdict = "used"
    reason: str = ""


@dataclass(slots=True)
class Kind:
    """Rows of one file with one reason. Reasons that differ in a number are one; the first stands for all."""

    file: str
    reason: str
    rows: int = 0
    places: list[str] = field(default_factory=list)
    alike: bool = True

    def add(self, place: str, reason: str) -> None:
        self.rows += 1
        self.alike = self.alike and reason == self.reason
        if len(self.places) < NAMED:
            self.places.append(place)

    def merge(self, other: Kind) -> None:
        self.rows += other.rows
        self.alike = self.alike and other.alike and self.reason == other.reason
        self.places = [*self.places, *other.places][:NAMED]

    def __str__(self) -> str:
        if self.rows == 1:
            return f"{self.places[0]}: {self.reason}"
        numbers = [split_place(place)[1] for place in self.places]
        if self.rows > len(numbers):
            listed = f"{', '.join(numbers)} and {self.rows - len(numbers):,} more"
        else:
            listed = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
        beginning = f"{self.file}: " if self.file else ""
        return f"{beginning}rows {listed}{'' if self.alike else ', the first of them'}: {self.reason}"

    def to_plain(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "reason": self.reason,
            "rows": self.rows,
            "places": self.places,
            "alike": self.alike,
        }


Kinds = dict[tuple[str, str], Kind]


class Account:
    """The rows of one dataset, each counted once. ``read`` = used + dropped + rejected; those cut are used.

    ``max_rejected`` is how many rows may be rejected, or below 1 which share of those read; beyond it :meth:`judge`
    raises. ``name`` is what the dataset is called in the log.
    """

    def __init__(self, name: str, max_rejected: float = 0) -> None:
        self.name = name
        self.max_rejected = max_rejected
        self.read = 0
        self.used = 0
        self.closed = False
        self.rejected: Kinds = {}
        self.dropped: Kinds = {}
        self.truncated: Kinds = {}

    def add(self, outcome: Outcome) -> None:
        """Counts one row. Raises nothing: see :meth:`judge`."""
        self.read += 1
        self.used += outcome.sample is not None
        if outcome.verdict == "rejected":
            note(self.rejected, outcome.where, outcome.reason)
        elif outcome.verdict == "dropped":
            note(self.dropped, outcome.where, outcome.reason)
        elif outcome.verdict == "truncated":
            note(self.truncated, outcome.where, outcome.reason)

    def merge(self, other: Account) -> None:
        """Adds the rows of a later part of the same dataset, read by another process."""
        self.read += other.read
        self.used += other.used
        for own, theirs in zip(self._kinds(), other._kinds(), strict=True):
            for key, kind in theirs.items():
                if key in own:
                    own[key].merge(kind)
                else:
                    own[key] = kind

    def judge(self, *, complete: bool = True) -> None:
        """Raises one :class:`DataError` with every reason where more rows were rejected than may be.

        Before all rows are read (``complete=False``) a share is judged from 100 rows on: one bad row among the
        first ten says little.
        """
        rejected = rows_of(self.rejected)
        read = self.read if complete else max(self.read, ENOUGH)
        allowed = self.max_rejected * read if self.max_rejected < 1 else self.max_rejected
        if rejected > allowed:
            raise self._bad_rows(rejected)

    def close(self) -> None:
        """All rows are read: judges them, says in the log what was left out, and that there is something to use."""
        self.closed = True
        self.judge()
        if not self.used:
            raise DataError(f"{self.name}: {self._why_none()}; there is nothing to train on")
        self.log()

    @property
    def left_out(self) -> bool:
        """Whether a row, or a part of one, is not used."""
        return self.used < self.read or bool(self.truncated)

    def log(self) -> None:
        """One line for what was read, and a warning for each reason that left something out."""
        if not self.left_out:
            logger.info("%s: %s rows read and used", self.name, f"{self.read:,}")
            return
        for line in self.lines():
            logger.warning("%s", line)

    def lines(self) -> Iterator[str]:
        """What is worth saying: the counts, then the reasons."""
        counts = [f"{self.name}: {self.read:,} rows read, {self.used:,} used"]
        for kinds, what in zip(self._kinds(), ("rejected", "dropped", "cut short"), strict=True):
            counts += [f"{rows_of(kinds):,} {what}"] if kinds else []
        yield ", ".join(counts)
        for kinds, what in zip(self._kinds(), ("rejected", "dropped", "cut short"), strict=True):
            yield from (f"  {what}: {line}" for line in listed(kinds))

    def to_plain(self) -> dict[str, Any]:
        """For run.json and checkpoints: counts, and lists of ``{file, reason, rows, places, alike}``."""
        names = ("rejected", "dropped", "truncated")
        kinds = {name: [kind.to_plain() for kind in of.values()] for name, of in zip(names, self._kinds(), strict=True)}
        return {"name": self.name, "read": self.read, "used": self.used, "closed": self.closed, **kinds}

    def load_plain(self, data: dict[str, Any]) -> None:
        """The inverse of :meth:`to_plain`; the threshold stays as it is configured now."""
        self.read, self.used, self.closed = data["read"], data["used"], data["closed"]
        for name, kinds in zip(("rejected", "dropped", "truncated"), self._kinds(), strict=True):
            kinds.clear()
            for item in data[name]:
                kind = Kind(item["file"], item["reason"], item["rows"], list(item["places"]), item["alike"])
                kinds[key_of(kind.file, kind.reason)] = kind

    def _kinds(self) -> tuple[Kinds, Kinds, Kinds]:
        return self.rejected, self.dropped, self.truncated

    def _why_none(self) -> str:
        if not self.read:
            return "no rows in it"
        reasons = listed(self.rejected) + listed(self.dropped)
        return f"none of its {self.read:,} rows can be used: " + "; ".join(reasons)

    def _bad_rows(self, rejected: int) -> DataError:
        count = f"{rejected:,} of {self.read:,} rows cannot be used:"
        more = [f"more than max_rejected: {self.max_rejected:g} allows"] if self.max_rejected else []
        return DataError("\n  ".join([count, *listed(self.rejected), *more]))


def note(kinds: Kinds, where: str, reason: str) -> None:
    """Counts one more row of a kind."""
    file, _ = split_place(where)
    key = key_of(file, reason)
    if key not in kinds and len(kinds) >= KINDS:
        reason, file = "other reasons", ""
        key = (file, reason)
    kinds.setdefault(key, Kind(file, reason)).add(where, reason)


def key_of(file: str, reason: str) -> tuple[str, str]:
    """Reasons that differ in a number (of tokens, of a message) are one, and so are a template's refusals for one
    cause, whichever messages the conversations have.
    """
    reason = re.sub(r"(refuses the conversation) \([^()]*\)", r"\1", reason)
    return file, re.sub(r"\d+", "#", reason)


def rows_of(kinds: Kinds) -> int:
    """The rows of all kinds."""
    return sum(kind.rows for kind in kinds.values())


def listed(kinds: Kinds) -> list[str]:
    """A line for each of the first kinds, and how many more there are."""
    more = [f"... and {len(kinds) - SHOWN} more causes"] if len(kinds) > SHOWN else []
    return [*(str(kind) for kind in list(kinds.values())[:SHOWN]), *more]


def split_place(where: str) -> tuple[str, str]:
    """``rows.jsonl:7`` or ``rows.json row 7`` as file and number."""
    match = re.fullmatch(r"(.*?)(?::(\d+)| row (\d+))", where, re.DOTALL)
    return (match[1], match[2] or match[3]) if match else ("", where)
