"""What all parameter models share: names that are checked, choices in any case, errors that can be read."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from graftwork.errors import ConfigError, did_you_mean


class Params(BaseModel):
    """A section of a configuration.

    Unknown names are errors. ``ALIASES`` maps other spellings to the field's name. Both building one in Python
    and assigning to a field raise :class:`graftwork.errors.ConfigError` with every mistake in it.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )

    ALIASES: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _readable(error, type(self), data) from None

    # pydantic calls an __init__ without this mark for nested sections too, where the mistakes of the
    # whole tree could then no longer be collected.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise _readable(error, type(self), {name: value}) from None

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any) -> Any:
        return cls.prepare(data) if isinstance(data, dict) else data

    @classmethod
    def prepare(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """``data`` under the fields' own names, without blocks and lists that were left empty (``training:``)."""
        renamed: dict[str, Any] = {}
        for key, value in data.items():
            name = cls.ALIASES.get(key, key)
            if name in renamed:
                hint = f"{key} and {name} are one setting; keep one"
                raise PydanticCustomError("same_setting", "{hint}", {"hint": hint})
            if value is not None or not cls._is_container(name):
                renamed[name] = value
        return renamed

    @classmethod
    def _is_container(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        kind = get_origin(field.annotation) or field.annotation if field else None
        return isinstance(kind, type) and issubclass(kind, (list, dict, BaseModel))

    @field_validator("*", mode="before")
    @classmethod
    def _fold_choice(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and _takes_numbers_only(annotation):
            raise PydanticCustomError("bool_as_number", "expected a number, not true or false")
        choices = tuple(literal_values(annotation))
        return _choose(value, choices) if isinstance(value, str) and choices else value


def _choose(value: str, choices: tuple[Any, ...]) -> Any:
    folded = {str(choice).casefold(): choice for choice in choices}
    if value.casefold() not in folded:
        raise PydanticCustomError(
            "unknown_choice", "{hint}", {"hint": f"not a choice; {did_you_mean(value, map(str, choices))}"}
        )
    return folded[value.casefold()]


def _expand_home(value: str) -> str:
    try:
        return str(Path(value).expanduser()) if value.startswith("~") else value
    except RuntimeError as error:
        raise PydanticCustomError("no_home", "there is no such home folder; write the whole path") from error


FilePath = Annotated[str, AfterValidator(_expand_home)]
"""The path of a file or folder as text, with the home folder written out."""


def literal_values(annotation: Any) -> Iterator[Any]:
    """The values of ``Literal[...]``, where an annotation is nothing but that (or None besides)."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        if len(parts) == 1:
            yield from literal_values(parts[0])


def _takes_numbers_only(annotation: Any) -> bool:
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return any(part in (int, float) for part in parts) and bool not in parts


class Neutral:
    """Marks a field that is known but not supported here: only ``values``, which ask for nothing, are accepted."""

    def __init__(self, *values: Any, instead: str) -> None:
        self.values = values
        self.instead = instead

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if not any(value == allowed and type(value) is type(allowed) for allowed in self.values):
            raise PydanticCustomError("not_supported", "{hint}", {"hint": f"not supported here; {self.instead}"})
        return value


def _readable(error: ValidationError, model: type[Params], data: Mapping[str, Any]) -> ConfigError:
    from graftwork.config.problems import problems_of

    named = {model.ALIASES.get(key, key): value for key, value in data.items()}
    return ConfigError([problem.render() for problem in problems_of(error, model, named)], source=model.__name__)
