"""Configurations as YAML that reads back to the same, each line with a comment where one is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from graftwork.config.base import Neutral
from graftwork.config.reader import CoreSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic.fields import FieldInfo

    from graftwork.config.origins import Path

    Comment = Callable[[Path], str]

_OLD = yaml.SafeDumper.yaml_implicit_resolvers
_NEW = CoreSchema.yaml_implicit_resolvers
_RESOLVERS = {key: [*_NEW.get(key, ()), *_OLD.get(key, ())] for key in {*_NEW, *_OLD}}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 (PyYAML) or YAML 1.2 (this package) would read as something else."""

    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(params: BaseModel, comment: Callable[[Path], str] = lambda path: "") -> str:
    """Every field in its order, except those that only their neutral value is accepted for.

    ``comment(path)`` is what stands behind a value after a ``#``; an empty text leaves it out.
    """
    return "".join(f"{line}\n" for line in _section(params, (), "", comment))


def supported(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields that a value other than the neutral one has a meaning for."""
    for name, field in model.model_fields.items():
        if not any(isinstance(mark, Neutral) for mark in field.metadata):
            yield name, field


def inline(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _section(params: BaseModel, path: Path, indent: str, comment: Comment) -> Iterator[str]:
    for name, _ in supported(type(params)):
        value = getattr(params, name)
        at = (*path, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _section(value, at, f"{indent}  ", comment)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            yield f"{indent}{name}:"
            yield from _items(value, at, f"{indent}  ", comment)
        else:
            note = comment(at)
            yield f"{indent}{name}: {inline(value)}{f'  # {note}' if note else ''}"


def _items(items: list[BaseModel], path: Path, indent: str, comment: Comment) -> Iterator[str]:
    for index, item in enumerate(items):
        first, *rest = _section(item, (*path, index), f"{indent}  ", comment)
        yield f"{indent}- {first.lstrip()}"
        yield from rest
