"""The layers of a configuration, each over the one before: file, environment, command line."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import yaml

from graftwork.config.elsewhere import meant_by
from graftwork.config.fields import canonical, known_names, model_at, section_fields
from graftwork.config.origins import Origin, Origins, Path, format_path, parse_path
from graftwork.config.problems import Problem, near_file
from graftwork.config.reader import parse_value, read_yaml
from graftwork.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import BaseModel

_PREFIX = "GRAFTWORK_"


@dataclass(slots=True)
class Draft:
    """Plain data on the way to a configuration, with the origin of each value and the mistakes so far."""

    model: type[BaseModel]
    data: dict[str, Any] = field(default_factory=dict)
    origins: Origins = field(default_factory=Origins)
    problems: list[Problem] = field(default_factory=list)

    def put(self, path: Path, value: Any, origin: Origin) -> None:
        """Sets one value; blocks and list items on the way are made where they are missing."""
        path = self._canonical(path)
        block: Any = self.data
        for depth, step in enumerate(path[:-1]):
            block = self._step(block, step, path[depth + 1], path[: depth + 1], origin)
            if block is None:
                return
        if not self._assign(block, path[-1], value):
            self._complain(path, origin)
        else:
            self.origins.set_all(path, value, origin)

    def _canonical(self, path: Path) -> Path:
        done: Path = ()
        for step in path:
            section = model_at(self.model, done)
            done = (*done, canonical(section, step) if isinstance(step, str) else step)
        return done

    def _step(self, block: Any, step: str | int, following: str | int, path: Path, origin: Origin) -> Any:
        found = _get(block, step)
        if found is None:
            found = [] if isinstance(following, int) else {}
            if not self._assign(block, step, found):
                self._complain(path, origin)
                return None
            # A copy: the block is made by the way, it is not what was set.
            self.origins.set(path, replace(origin))
        return found

    @staticmethod
    def _assign(block: Any, step: str | int, value: Any) -> bool:
        if isinstance(block, dict):
            block[str(step)] = value
        elif isinstance(block, list) and isinstance(step, int) and step < len(block):
            block[step] = value
        elif isinstance(block, list) and step == len(block):
            block.append(value)
        else:
            return False
        return True

    def _complain(self, path: Path, origin: Origin) -> None:
        text = f"there is no place {path[-1]} here: not a block, or a list that is shorter"
        self.problems.append(Problem(path=path, text=text, origin=origin))


def _get(block: Any, step: str | int) -> Any:
    if isinstance(block, dict):
        return block.get(str(step))
    return block[step] if isinstance(block, list) and isinstance(step, int) and step < len(block) else None


def read_file(draft: Draft, path: FilePath) -> None:
    """Fills the draft from a YAML file; raises :class:`ConfigError` where it cannot be read at all."""
    text = _read_text(path)
    try:
        data, reader = read_yaml(text, str(path), draft.model)
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not YAML: {_one_line(error)}{_quoted(error, text)}"], source=str(path)) from None
    draft.origins = reader.origins
    draft.problems.extend(reader.problems)
    if data is None or isinstance(data, dict):
        draft.data = data or {}
    else:
        text = "the top of a configuration is a mapping (model: ..., data: ..., training: ...)"
        draft.problems.append(Problem(path=("<top>",), text=text, origin=Origin(str(path), 1)))


def _read_text(path: FilePath) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problem = f"{path}: there is no such file in {FilePath.cwd()}{near_file(path)}"
    except UnicodeDecodeError as error:
        problem = f"{path}: not UTF-8 text: {error}"
    except OSError as error:
        problem = f"{path}: cannot be read: {error.strerror}"
    raise ConfigError([problem], source=str(path))


def _one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _quoted(error: yaml.YAMLError, text: str) -> str:
    """The line that the error speaks of, a mark under the column, and the line before, where the cause often lies."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    lines = text.splitlines()
    if mark is None or not lines:
        return ""
    number = min(mark.line, len(lines) - 1)
    shown = [f"    {place + 1:>4} | {lines[place]}" for place in range(max(0, number - 1), number + 1)]
    return "\n" + "\n".join([*shown, " " * (mark.column + 11) + "^"] if number == mark.line else shown)


def read_environment(draft: Draft, env: Mapping[str, str]) -> None:
    """Applies ``GRAFTWORK_<SECTION>__<FIELD>=value``; names without ``__`` are other settings."""
    for name in sorted(env):
        if name.startswith(_PREFIX) and "__" in name:
            path = parse_path(name.removeprefix(_PREFIX).lower().replace("__", "."))
            _put_text(draft, path, env[name], Origin(f"environment: {name}={env[name]}"))


def read_overrides(draft: Draft, overrides: Sequence[str]) -> None:
    """Applies ``a.b=value``, ``--a.b=value`` and ``--a.b value``."""
    for name, value, written in _pairs(overrides):
        origin = Origin(f"command line: {written}")
        if value is None:
            problem = "is no setting; write section.field=value, for instance training.max_steps=10"
            draft.problems.append(Problem(path=(name,), text=problem, origin=origin))
        elif hint := _meant(draft.model, name):
            draft.problems.append(
                Problem(path=(name,), text=f"unknown key; did you mean {hint}={value}?", origin=origin)
            )
        else:
            _put_text(draft, parse_path(name), value, origin)


def _meant(model: type[BaseModel], name: str) -> str | None:
    """The setting that an option as other programs have it, ``--max-steps``, is nearest to; it is no field here."""
    if "." in name or name in known_names(model) or meant_by(name):
        return None
    places = section_fields(model)
    near = nearest(name.replace("-", "_"), [*places, *known_names(model)])
    return format_path(places[near]) if near in places else None


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str | None, str]]:
    """(name, value or None where there is none, as written)"""
    words = iter(range(len(overrides)))
    for index in words:
        word = overrides[index]
        name, equals, value = word.removeprefix("--").partition("=")
        following = overrides[index + 1] if index + 1 < len(overrides) else None
        if equals:
            yield name, value, word
        elif word.startswith("--") and following is not None and not following.startswith("--"):
            next(words)
            yield name, following, f"{word} {following}"
        else:
            yield name, None, word


def _put_text(draft: Draft, path: Path, text: str, origin: Origin) -> None:
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        problem = f"the value is not YAML ({_one_line(error)}); quote it"
        draft.problems.append(Problem(path=path, text=problem, origin=origin))
    else:
        draft.put(path, value, origin)
