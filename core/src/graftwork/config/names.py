"""Names that plugins give meaning to, and the option blocks that go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from graftwork.config.base import Params
from graftwork.config.fields import known_names
from graftwork.config.origins import Path
from graftwork.config.problems import Problem, problems_of
from graftwork.config.run import RunConfig
from graftwork.errors import ConfigError, GraftworkError, UsageError, did_you_mean
from graftwork.registry import Registry, get_registry


class HasParams(Protocol):
    """Any record that takes options."""

    @property
    def name(self) -> str: ...
    @property
    def params(self) -> Callable[[], type[BaseModel]] | None: ...


def plugin_params(spec: HasParams, options: Mapping[str, Any]) -> BaseModel | None:
    """The option block of a plugin as the plugin's own parameter model, or None where it takes no options.

    Raises :class:`graftwork.errors.ConfigError` on options that do not fit.
    """
    problems = list(_options(spec, options, ()))
    if problems:
        raise ConfigError([problem.render() for problem in problems], source=f"options of {spec.name}")
    return spec.params().model_validate(dict(options)) if spec.params else None


def _options(spec: HasParams, options: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    if spec.params is None:
        if options:
            yield Problem(path=path, value=dict(options), text=f"{spec.name} takes no options; remove them")
        return
    try:
        model = spec.params()
    except Exception as error:  # a plugin's code: whatever it raises is its mistake, reported in its place
        yield Problem(path=path, text=f"the options of {spec.name} cannot be read: {type(error).__name__}: {error}")
        return
    yield from _unknown_options(model, options, path)
    try:
        model.model_validate(dict(options))
    except ValidationError as error:
        yield from problems_of(error, model, options, path)
    except GraftworkError as error:
        yield Problem(path=path, text=str(error))


def _unknown_options(model: type[BaseModel], options: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """A model that lets unknown keys pass without a word still gets them reported."""
    if model.model_config.get("extra") in ("forbid", "allow"):
        return
    taken = {*known_names(model), *(field.alias for field in model.model_fields.values() if field.alias)}
    for key in options:
        if key not in taken:
            yield Problem(path=(*path, key), value=options[key], text=f"unknown key; {did_you_mean(key, taken)}")


def _named(path: Path, table: Mapping[str, Any], name: str | None) -> Iterator[Problem]:
    if name is not None:
        try:
            table[name]
        except UsageError as error:
            yield Problem(path=path, value=name, text=str(error))


def _with_options(
    path: Path, table: Mapping[str, Any], name: str | None, options_path: Path, options: Mapping[str, Any]
) -> Iterator[Problem]:
    try:
        spec = table[name] if name is not None else None
    except UsageError as error:
        yield Problem(path=path, value=name, text=str(error))
        return
    if spec is not None:
        yield from _options(spec, options, options_path)
    elif options:
        yield Problem(
            path=options_path, value=dict(options), related=(path,), text=f"options of what? Set {path[-1]} too"
        )


def check_names(config: RunConfig) -> Iterator[Problem]:
    """Every name that the registry does not know, and every option that its owner does not take."""
    registry = get_registry()
    yield from _check_model(config, registry)
    yield from _check_data(config, registry)
    training, peft = config.training, config.peft
    yield from _with_options(
        ("training", "trainer_type"),
        registry.trainers,
        training.trainer_type,
        ("training", "trainer_kwargs"),
        training.trainer_kwargs,
    )
    yield from _named(("training", "optimizer"), registry.optimizers, training.optimizer)
    yield from _with_options(
        ("peft", "quantizer"), registry.quantizers, peft.quantizer, ("peft", "quantizer_kwargs"), peft.quantizer_kwargs
    )


def _check_model(config: RunConfig, registry: Registry) -> Iterator[Problem]:
    model = config.model
    yield from _named(("model", "family"), registry.families, model.family)
    yield from _named(("model", "tokenizer_impl"), registry.tokenizers, model.tokenizer_impl)


def _check_data(config: RunConfig, registry: Registry) -> Iterator[Problem]:
    for split_name in ("train", "validation", "test"):
        split = getattr(config.data, split_name)
        here: Path = ("data", split_name)
        yield from _with_options(
            (*here, "collator_name"),
            registry.collators,
            split.collator_name,
            (*here, "collator_kwargs"),
            split.collator_kwargs,
        )
        for index, dataset in enumerate(split.datasets):
            at = (*here, "datasets", index)
            yield from _with_options(
                (*at, "dataset_name"),
                registry.datasets,
                dataset.dataset_name,
                (*at, "dataset_kwargs"),
                dataset.dataset_kwargs,
            )


__all__ = ["Params", "check_names", "plugin_params"]
