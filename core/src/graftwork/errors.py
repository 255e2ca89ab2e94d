"""The errors that a user sees: one line of what, where and which value, then what to do.

``graft`` prints a :class:`GraftworkError` without a traceback and leaves with its ``exit_code``:
2 where the request was wrong (configuration, names, data), 1 where the world failed (disk, network).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class GraftworkError(Exception):
    """Something went wrong that a person can mend; the message says how."""

    exit_code = 1


class UsageError(GraftworkError):
    """The request itself is wrong: a value, a name, a file that was pointed to."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more mistakes in a configuration, all of them reported at once.

    ``problems`` holds one text per mistake; each names its path, line, value and remedy.
    """

    def __init__(self, problems: Sequence[str], *, source: str = "configuration") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = len(self.problems)
        head = f"{source}: {count} {'mistake' if count == 1 else 'mistakes'}"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


class UnknownNameError(UsageError):
    """A name that nobody declared; the message suggests the nearest and lists the rest."""


class ClashError(UsageError):
    """A name or claim that two distributions declare; the message names both and how to choose one."""


class PluginError(UsageError):
    """A plugin that a request needs is blocked, broken or incompatible."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed; the message names the extra or plugin that brings it."""


class DataError(UsageError):
    """A data file or a row in it cannot be used; the message gives file, line and reason."""


class ModelError(UsageError):
    """A model cannot be found, built or run as asked."""


class RunError(GraftworkError):
    """A run could not go on: the disk, a checkpoint, a resume that does not fit."""


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 8) -> str:
    """The tail of an error about an unknown ``name``: the nearest known one, then what there is; of more than
    ``limit`` names those most like it.

    >>> did_you_mean("lama3_8b", ["llama3_8b", "llama2_7b"])
    'did you mean llama3_8b? Known: llama2_7b, llama3_8b'
    >>> did_you_mean("bert", ["llama3_8b", "llama2_7b"])
    'known: llama2_7b, llama3_8b'
    """
    names = sorted(set(known))
    near = " or ".join(_with_word(name, names)) or nearest(name, names)
    if not names:
        return "none is known here"
    label = "known"
    if len(names) > limit:
        label = f"nearest of {len(names)}"
        names = sorted(names, key=lambda each: -_likeness(name, each))[:limit]
    listed = ", ".join(names)
    return f"did you mean {near}? {label.capitalize()}: {listed}" if near else f"{label}: {listed}"


def _with_word(name: str, names: Sequence[str], most: int = 3) -> list[str]:
    """The names that have ``name`` as one of their words, as ``NATIVE_SFT`` and ``TRL_SFT`` have ``sft``; not many."""
    found = [each for each in names if name.casefold() in each.casefold().replace("-", "_").split("_")]
    return found if len(found) <= most else []


def _likeness(name: str, other: str) -> float:
    """How like two names are, 0 to 1; the words of one may stand in another order, as in ``sft_text``."""
    import difflib

    pairs = ((name.casefold(), other.casefold()), (_in_order(name), _in_order(other)))
    return max(difflib.SequenceMatcher(None, second, first).ratio() for first, second in pairs)


def _in_order(name: str) -> str:
    return " ".join(sorted(re.split(r"[\W_]+", name.casefold())))


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The known name that is most like ``name``; None where none is at least so like it (1: the same)."""
    near = max(((_likeness(name, each), each) for each in set(known)), default=(0.0, ""))
    return near[1] if near[0] >= likeness else None
