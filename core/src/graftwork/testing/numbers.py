"""Every number of a configuration matters: a test that changes each of them and wants to see the difference."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

from transformers import PretrainedConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Compare = Callable[[PretrainedConfig, PretrainedConfig], None]

NOT_IN_LOGITS: Mapping[str, str] = MappingProxyType(
    {
        "attention_dropout": "only in training",
        "bos_token_id": "what generation starts with",
        "eos_token_id": "what generation stops at",
        "initializer_range": "the spread of fresh weights",
        "pad_token_id": "no gradient for this embedding",
        "use_cache": "what is returned besides the logits",
    }
)
"""Fields of many families that cannot show in the logits of given weights, and why. They need no exemption."""


def numeric_fields(config: PretrainedConfig) -> dict[str, Any]:
    """Every number and truth value of a configuration, by its dot path (``rope_parameters.rope_theta``).

    Those in lists count one by one, and so do fields that are None and could be a number. Left out is what every
    configuration of transformers has, whatever the model (``output_hidden_states``).
    """
    found = dict(_numbers(_own_values(config), ""))
    unset = (field.name for field in fields(config) if getattr(config, field.name, 0) is None)
    return found | {name: None for name in unset if name not in _common() and _kinds(config, name)}


def assert_every_number_matters(
    config: PretrainedConfig,
    compare: Compare,
    *,
    exempt: Mapping[str, str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Changes one number of ``config`` after the other, and wants ``compare`` to fail for each.

    ``compare(built, described)`` compares the model of the configuration ``built`` with what an independent
    reference says for ``described``, both with the weights that fit ``config``; it raises where they differ. It has
    to hold for ``config`` on both sides. For a changed number it has to fail on the model's side; and where it is
    the comparison that fails and not the building of the model, on the reference's side as well, or the reference
    does not read that number. ``changes`` are the values to change to, where the default is not telling.

    ``exempt`` holds a reason for each field that cannot show, beside :data:`NOT_IN_LOGITS`; one that is unknown, or
    that does show, is an error, so that the list stays true.

    Raises :class:`AssertionError` that names every number of which this is not so.
    """
    compare(config, config)
    numbers, excused = numeric_fields(config), {**NOT_IN_LOGITS, **(exempt or {})}
    wrong = [f"{name}: exempt without a reason" for name, reason in excused.items() if not reason]
    named = {**(exempt or {}), **(changes or {})}
    wrong += [f"{name}: no numeric field of {type(config).__name__}" for name in named if name not in numbers]
    for name, value in numbers.items():
        other = (changes or {}).get(name, _another(value, _kinds(config, name)))
        if problem := _deaf(config, compare, name, other, exempt=name in excused):
            wrong.append(f"{name} ({value!r} -> {other!r}): {problem}")
    if wrong:
        raise AssertionError(f"{len(wrong)} of {len(numbers)} numbers of {type(config).__name__}:\n" + "\n".join(wrong))


def _deaf(config: PretrainedConfig, compare: Compare, name: str, value: Any, *, exempt: bool) -> str | None:
    """What is wrong with the comparison when one number is another, or None."""
    try:
        changed = _with(config, name, value)
        compare(changed, config)
    except AssertionError:
        if exempt:
            return "exempt, but the comparison sees it"
    except Exception:  # whatever says that there is no such model: a shape, or the configuration's own checks
        return "exempt, but no model is built with it" if exempt else None
    else:
        return None if exempt else "the model is the same with it: nothing reads it, or the comparison cannot see it"
    try:
        compare(config, changed)
    except Exception:  # the reference's formulas with a number that does not fit these weights
        return None
    return "the reference does not read it"


def _own_values(config: PretrainedConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {name: value for name, value in values.items() if name not in _common() and not name.startswith("_")}


@cache
def _common() -> frozenset[str]:
    return frozenset({*PretrainedConfig().to_dict(), "model_type"})


def _numbers(values: Mapping[str, Any] | list[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    items = values.items() if not isinstance(values, list) else enumerate(values)
    for key, value in items:
        if isinstance(value, bool | int | float):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict | list):
            yield from _numbers(value, f"{prefix}{key}.")


def _kinds(config: PretrainedConfig, name: str) -> tuple[type, ...]:
    """The kinds of number that a field is declared to take."""
    declared = next((field.type for field in fields(config) if field.name == name), None)
    return tuple(kind for kind in (*get_args(declared), declared) if kind in (bool, int, float))


def _another(value: Any, kinds: tuple[type, ...]) -> Any:
    """Far enough from ``value`` to be seen: half as much again, the opposite, or a first value where there is none."""
    if value is None:
        return kinds[0](1)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + max(1, value // 2)
    return value * 1.5 if abs(value) > 1e-2 else value + 0.1


def _with(config: PretrainedConfig, name: str, value: Any) -> PretrainedConfig:
    """A configuration made anew with one number changed, so that its own checks take place."""
    values = deepcopy(_own_values(config))
    *parts, last = name.split(".")
    place: Any = values
    for part in parts:
        place = place[int(part) if isinstance(place, list) else part]
    place[int(last) if isinstance(place, list) else last] = value
    return type(config)(**values)
