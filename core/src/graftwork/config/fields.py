"""Questions about the models themselves: which section lies at a path, what a name is called there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from graftwork.config.base import Params

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork.config.origins import Path


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The model within an annotation such as ``list[DatasetParams]`` or ``PeftParams | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)


def aliases(model: type[BaseModel]) -> dict[str, str]:
    return dict(model.ALIASES) if issubclass(model, Params) else {}


def known_names(model: type[BaseModel]) -> list[str]:
    """Every spelling of a field that the model takes."""
    return [*model.model_fields, *aliases(model)]


def model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model of the block at ``path``, or None where there is free data or nothing."""
    current: type[BaseModel] | None = model
    for step in path:
        if isinstance(step, str) and current is not None:
            field = current.model_fields.get(aliases(current).get(step, step))
            current = section_in(field.annotation) if field else None
    return current


def canonical(model: type[BaseModel] | None, key: str) -> str:
    """The field's own name for a key, which may be an alias."""
    return aliases(model).get(key, key) if model else key


def section_fields(model: type[BaseModel]) -> dict[str, Path]:
    """Every name in a section, and the path of the first field that has it; as far as no list is in between."""
    found: dict[str, Path] = {}
    for key, field in model.model_fields.items():
        section = section_in(field.annotation)
        for name in known_names(section) if section else ():
            found.setdefault(name, (key, name))
    return found


def sections_with(model: type[BaseModel], name: str) -> Iterator[Path]:
    """The paths of sections' fields that have this name, as far as no list is in between."""
    for key, field in model.model_fields.items():
        section = section_in(field.annotation)
        if section and name in known_names(section):
            yield key, name
