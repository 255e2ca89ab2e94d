"""From what pydantic found to what a person can mend: path, place, value, the nearest right name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.config.elsewhere import meant_by
from graftwork.config.fields import known_names, model_at, section_in, sections_with
from graftwork.config.origins import Origin, Origins, Path, format_path
from graftwork.errors import did_you_mean, nearest

if TYPE_CHECKING:
    from pathlib import Path as FilePath

    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

# What pydantic says of the plainest mistakes, in the words of somebody who writes YAML.
_PLAIN = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "string_type": "expected a text; put it in quotes",
    "list_type": "expected a list; put it in [ ], or on a line of its own after '- '",
    "dict_type": "expected a block of settings, not a single value or a list",
}
_NOT_A_BLOCK = ("model_type", "model_attributes_type", "dataclass_type")
MISSING: Any = object()
"""The value of a problem that has none: something that should be there is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake. ``related`` are further paths that its text speaks of: where one of those is itself
    wrong, the problem may be a mere consequence and is not reported.
    """

    path: Path
    text: str
    value: Any = MISSING
    related: tuple[Path, ...] = ()
    origin: Origin | None = None

    def render(self, origins: Origins | None = None) -> str:
        """``run.yaml:12: training.max_stepz = 10: unknown key; did you mean max_steps?``"""
        origin = self.place(origins)
        text = self.text.replace("\n", "\n    ")
        if origin and origin.line is None and (self.origin or (origins and origins.is_named(self.path))):
            return f"{origin}: {text}"  # such a place shows name and value itself
        is_default = self.value is not MISSING and origins and origins.exact(self.path) is None
        value = "" if self.value is MISSING else f" = {short(self.value)}"
        shown = f"{format_path(self.path)}{value}{' (the default)' if is_default else ''}"
        return f"{f'{origin}: ' if origin else ''}{shown}: {text}"

    def place(self, origins: Origins | None) -> Origin | None:
        return self.origin or (origins.of(self.path) if origins else None)


def short(value: Any, limit: int = 60) -> str:
    """A value on one line; a long one without its middle, as the end of a path says more than the way to it."""
    text = repr(value)
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def near_file(path: FilePath) -> str:
    """The tail of an error about a file that is not there: the one beside it with nearly the same name, if any."""
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, names)
    return f"; did you mean {path.parent / near}?" if near else ""


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
    value: Any = data
    for step in details["loc"]:
        if _holds(value, step):
            value = value[step]
        elif details["type"] == "missing":
            value = MISSING
        else:
            continue
        path = (*path, step)
    return path, value


def _holds(value: Any, step: str | int) -> bool:
    return step in value if isinstance(value, Mapping) else isinstance(value, list) and isinstance(step, int)


def _text(details: ErrorDetails, model: type[BaseModel], path: Path) -> str:
    if details["type"] == "missing":
        owner = model_at(model, path[:-1])
        field = owner.model_fields.get(str(path[-1])) if owner else None
        return _missing(field, path) if field else "missing"
    if details["type"] in _NOT_A_BLOCK:
        return "expected a block of settings, not a single value or a list"
    if details["type"] == "list_type" and isinstance(details["input"], Mapping):
        return "expected a list; put '- ' before its first key, and indent the others to stand below that key"
    if details["type"] in _PLAIN:
        return _PLAIN[details["type"]]
    message = details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:]


def _missing(field: FieldInfo, path: Path) -> str:
    """What to set: of a section the settings in it that have no default."""
    section = section_in(field.annotation)
    needed = [(name, inner) for name, inner in section.model_fields.items() if inner.is_required()] if section else []
    if not needed:
        return f"missing. {field.description}" if field.description else "missing"
    listed = "; ".join(f"{format_path((*path, name))}: {inner.description}" for name, inner in needed)
    return f"missing; set at least {listed}"


def _unknown(model: type[BaseModel], path: Path) -> str:
    name = str(path[-1])
    owner = model_at(model, path[:-1])
    if meant := meant_by(name):
        return f"unknown key, which other systems have; did you mean {meant}?"
    text = f"unknown key; {did_you_mean(name, known_names(owner) if owner else ())}"
    elsewhere = [place for place in sections_with(model, name) if place != path]
    return f"unknown key; did you mean {format_path(elsewhere[0])}?" if elsewhere and "did you" not in text else text


def without_consequences(problems: Iterable[Problem], broken: set[Path]) -> list[Problem]:
    """Those that speak of nothing that is already known to be wrong."""

    def is_broken(path: Path) -> bool:
        return any(path[:length] in broken for length in range(1, len(path) + 1))

    return [problem for problem in problems if not any(map(is_broken, (problem.path, *problem.related)))]
