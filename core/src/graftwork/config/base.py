"""What all parameter models share: names that are checked, choices in any case, errors that can be read."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from graftwork.errors import ConfigError, did_you_mean

Options = Annotated[dict[str, Any], Field(default_factory=dict)]


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
    def _rename_aliases(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not any(key in cls.ALIASES for key in data):
            return data
        renamed: dict[Any, Any] = {}
        for key, value in data.items():
            name = cls.ALIASES.get(key, key)
            if name in renamed:
                raise PydanticCustomError(
                    "same_setting", "{key} and {name} are one setting; keep one", {"key": key, "name": name}
                )
            renamed[name] = value
        return renamed

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


def neutral(*values: Any, instead: str) -> AfterValidator:
    """A field that is known but not supported here: only ``values``, which ask for nothing, are accepted."""

    def check(value: Any) -> Any:
        if not any(value == allowed and type(value) is type(allowed) for allowed in values):
            raise PydanticCustomError("not_supported", "{hint}", {"hint": f"not supported here; {instead}"})
        return value

    return AfterValidator(check)


def _readable(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> ConfigError:
    from graftwork.config.problems import problems_of

    return ConfigError([problem.render() for problem in problems_of(error, model, data)], source=model.__name__)
