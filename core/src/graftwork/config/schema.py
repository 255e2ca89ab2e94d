"""What can be set: every field with type, default and meaning, those of installed plugins too."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from graftwork.config.base import Params
from graftwork.config.dump import inline
from graftwork.config.fields import section_in
from graftwork.config.run import RunConfig
from graftwork.errors import GraftworkError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

OPTION_BLOCKS = {
    "trainers": "training.trainer_kwargs",
    "datasets": "data.*.datasets[].dataset_kwargs",
    "collators": "data.*.collator_kwargs",
    "quantizers": "peft.quantizer_kwargs",
}
"""Kind in the registry to where the options of its records stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One field."""

    name: str
    type: str
    default: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The fields at one place of a configuration; ``owner`` is the plugin's name that they are options of."""

    place: str
    model: type[BaseModel]
    owner: str = ""

    @property
    def title(self) -> str:
        return f"{self.place} ({self.owner})" if self.owner else self.place

    def rows(self) -> Iterator[Row]:
        for name, field in self.model.model_fields.items():
            if self.owner or not _is_block(field):
                default = "required" if field.is_required() else inline(_default(field))
                yield Row(
                    name=name,
                    type=type_name(field.annotation),
                    default=default,
                    description=field.description or "",
                )


def blocks() -> list[Block]:
    """All places, the core's own first, then the option blocks of installed plugins."""
    return [*_core_blocks(RunConfig, ""), *_plugin_blocks()]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration, with those of the option blocks under ``x-plugins``."""
    plugins: dict[str, dict[str, Any]] = {}
    for block in _plugin_blocks():
        plugins.setdefault(block.place, {})[block.owner] = block.model.model_json_schema()
    return {**RunConfig.model_json_schema(), "x-plugins": plugins}


def type_name(annotation: Any) -> str:
    """An annotation as a person would write it.

    >>> type_name(int | None)
    'int or null'
    """
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in get_args(annotation))
    if get_origin(annotation) in (list, tuple, set):
        return f"list of {type_name(get_args(annotation)[0])}"
    if (get_origin(annotation) or annotation) is dict:
        return "mapping"
    if annotation is type(None):
        return "null"
    return "-" if annotation is Any else str(getattr(annotation, "__name__", annotation))


def _core_blocks(model: type[BaseModel], place: str) -> Iterator[Block]:
    yield Block(place=place or "top", model=model)
    for name, field in model.model_fields.items():
        section = section_in(field.annotation)
        if section is None or not _is_block(field):
            continue
        mark = "[]" if get_origin(field.annotation) is list else ""
        if place == "data":
            # The three splits are alike.
            name = "*"  # noqa: PLW2901
            if field is not model.model_fields["train"]:
                continue
        yield from _core_blocks(section, f"{place}.{name}{mark}".lstrip("."))


def _is_block(field: FieldInfo) -> bool:
    """A section of its own, not a field that may hold one (``model.peft_params``)."""
    kind = get_origin(field.annotation) or field.annotation
    section = section_in(field.annotation)
    return section is not None and issubclass(section, Params) and kind in (section, list)


def _plugin_blocks() -> Iterator[Block]:
    registry = get_registry()
    for kind, place in OPTION_BLOCKS.items():
        table: Mapping[str, Any] = getattr(registry, kind)
        for spec in table.values():
            if spec.params is not None and (model := _load(spec.params)) is not None:
                yield Block(place=place, model=model, owner=spec.name)


def _load(thunk: Any) -> type[BaseModel] | None:
    """A parameter model, or None where the plugin fails to give it: that is said when it is used."""
    try:
        model = thunk()
    except (Exception, GraftworkError):
        return None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True)
    return value.model_dump() if isinstance(value, BaseModel) else value
