"""Where each value came from: a line of a file, an environment variable, the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """One place. ``line`` counts from 1 and is None where there are no lines."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Origins:
    """The origin of every value that was set, by path."""

    def __init__(self) -> None:
        self._places: dict[Path, Origin] = {}

    def __eq__(self, other: object) -> bool:
        # Where a value came from is no part of what it is: equal configurations compare equal.
        return isinstance(other, Origins)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self._places)

    def __iter__(self) -> Iterator[tuple[Path, Origin]]:
        return iter(self._places.items())

    def add(self, path: Path, origin: Origin) -> None:
        """Notes the origin of a value that had none."""
        self._places[path] = origin

    def set(self, path: Path, origin: Origin) -> None:
        """Notes the origin of a value, and forgets those of what lay under it."""
        self.forget(path)
        self._places[path] = origin

    def set_all(self, path: Path, value: Any, origin: Origin) -> None:
        """Notes one origin for a value and for everything in it."""
        self.set(path, origin)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            self.set_all((*path, key), item, origin)

    def forget(self, path: Path) -> None:
        for known in [known for known in self._places if known[: len(path)] == path]:
            del self._places[known]

    def move(self, path: Path, target: Path) -> None:
        """The values under ``path`` are found under ``target`` from now on."""
        for known, origin in list(self):
            if known[: len(path)] == path:
                self._places[(*target, *known[len(path) :])] = self._places.pop(known, origin)

    def exact(self, path: Path) -> Origin | None:
        """The origin of the value at ``path`` itself; None where it is a default."""
        return self._places.get(path)

    def is_named(self, path: Path) -> bool:
        """Whether the value was set by its own name, not as a part of a block that was set as a whole."""
        origin = self.exact(path)
        return origin is not None and self.exact(path[:-1]) is not origin

    def of(self, path: Path) -> Origin | None:
        """The origin of the value at ``path``, or of the nearest block around it."""
        for length in range(len(path), 0, -1):
            if (place := self._places.get(path[:length])) is not None:
                return place
        return None


def parse_path(text: str) -> Path:
    """``data.train.datasets.0.split`` or ``data.train.datasets[0].split`` as a tuple.

    >>> parse_path("data.train.datasets[0].split")
    ('data', 'train', 'datasets', 0, 'split')
    """
    parts = re.sub(r"\[(\d+)\]", r".\1", text).split(".")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def format_path(path: Path) -> str:
    """The inverse of :func:`parse_path`, with dots."""
    return ".".join(map(str, path))
