"""From what pydantic found to what a person can mend: path, place, value, the nearest right name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from graftwork.config.fields import known_names, model_at, sections_with
from graftwork.config.origins import Origin, Origins, Path, format_path
from graftwork.errors import did_you_mean

MISSING: Any = object()
"""The value of a problem that has none: something that should be there is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake. ``related`` are further paths that its text speaks of: where one of those is itself
    wrong, the problem may be a mere consequence and is not reported."""

    path: Path
    text: str
    value: Any = MISSING
    related: tuple[Path, ...] = ()
    origin: Origin | None = None

    def render(self, origins: Origins | None = None) -> str:
        """``run.yaml:12: training.max_stepz = 10: unknown key; did you mean max_steps?``"""
        origin = self.origin or (origins.of(self.path) if origins else None)
        place = f"{origin}: " if origin else ""
        if origin and origin.line is None:
            return f"{place}{self.text}"  # such a source shows name and value already
        value = "" if self.value is MISSING else f" = {short(self.value)}"
        return f"{place}{format_path(self.path)}{value}: {self.text}"


def short(value: Any, limit: int = 60) -> str:
    """A value on one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def problems_of(error: ValidationError, model: type[BaseModel], data: Any, base: Path = ()) -> list[Problem]:
    """One problem per mistake in ``data``, which was to become ``model`` and lies under the path ``base``."""
    found: dict[Path, Problem] = {}
    for details in error.errors(include_url=False):
        path, value = _locate(details, data)
        text = _unknown(model, path) if details["type"] == "extra_forbidden" else _text(details, model, path)
        # A union gives one error per member; the first speaks for all.
        found.setdefault(path, Problem(path=(*base, *path), text=text, value=value))
    return list(found.values())


def _locate(details: ErrorDetails, data: Any) -> tuple[Path, Any]:
    """The path in the data, without the names of union members that pydantic puts into it."""
    path: Path = ()
    value = data
    for step in details["loc"]:
        if isinstance(value, Mapping) and step in value or isinstance(value, list) and isinstance(step, int):
            value = value[step]
        elif details["type"] == "missing":
            value = MISSING
        else:
            continue
        path = (*path, step)
    return path, value


def _text(details: ErrorDetails, model: type[BaseModel], path: Path) -> str:
    if details["type"] == "missing":
        owner = model_at(model, path[:-1])
        field = owner.model_fields.get(str(path[-1])) if owner else None
        return f"missing; {field.description}" if field and field.description else "missing"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:]


def _unknown(model: type[BaseModel], path: Path) -> str:
    name = str(path[-1])
    owner = model_at(model, path[:-1])
    text = f"unknown key; {did_you_mean(name, known_names(owner) if owner else ())}"
    elsewhere = [place for place in sections_with(model, name) if place != path]
    return f"unknown key; did you mean {format_path(elsewhere[0])}?" if elsewhere and "did you" not in text else text


def without_consequences(problems: Iterable[Problem], broken: set[Path]) -> list[Problem]:
    """Those that do not touch a path that is already known to be wrong."""

    def touches(path: Path) -> bool:
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in broken)

    return [problem for problem in problems if not any(touches(path) for path in (problem.path, *problem.related))]
