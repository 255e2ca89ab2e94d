"""Names that plugins give meaning to, and the option blocks that go with them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ValidationError

from graftwork.config.fields import known_names
from graftwork.config.problems import Problem, problems_of
from graftwork.data.names import Datasets
from graftwork.errors import ConfigError, GraftworkError, did_you_mean
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from graftwork.config.data import DatasetSplitParams
    from graftwork.config.model import ModelParams
    from graftwork.config.origins import Path
    from graftwork.config.peft import PeftParams
    from graftwork.config.run import RunConfig
    from graftwork.config.training import TrainingParams


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
    problems = list(check_options(spec, options, ()))
    if problems:
        raise ConfigError([problem.render() for problem in problems], source=f"options of {spec.name}")
    return spec.params().model_validate(dict(options)) if spec.params else None


def check_names(config: RunConfig) -> Iterator[Problem]:
    """Every name that nobody declares, and every option that its owner does not take."""
    yield from _check_model(config.model)
    for name, split in config.data.splits().items():
        yield from _check_split(split, ("data", name))
    yield from _check_training(config.training)
    yield from _check_ignored(config)
    yield from _check_peft(config.peft)


def _check_model(model: ModelParams) -> Iterator[Problem]:
    from graftwork.chat.template import find_template
    from graftwork.sources.resolve import resolve

    registry = get_registry()

    def with_revision(name: str) -> object:
        return resolve(name, revision=model.model_revision)

    for field, lookup in (
        ("model_name", with_revision),
        ("tokenizer_name", resolve),
        ("adapter_model", resolve),
        ("family", registry.families.__getitem__),
        ("tokenizer_impl", registry.tokenizers.__getitem__),
        ("chat_template", find_template),
    ):
        related = (("model", "model_revision"),) if field == "model_name" else ()
        yield from _look_up(("model", field), getattr(model, field), lookup, related)
    yield from _check_template(model)


def _check_template(model: ModelParams) -> Iterator[Problem]:
    """A template whose end of turn the tokenizer cannot write, where its files lie here."""
    from graftwork.chat.fit import missing_stop
    from graftwork.chat.template import find_template
    from graftwork.sources.resolve import resolve

    tokenizer = "tokenizer_name" if model.tokenizer_name else "model_name"
    try:
        folder = resolve(getattr(model, tokenizer)).path if model.chat_template else None
        reason = missing_stop(find_template(model.chat_template), folder, model.added_tokens) if folder else None
    except GraftworkError:  # reported as a wrong name
        return
    if reason:
        path, related = ("model", "chat_template"), (("model", tokenizer), ("model", "added_tokens"))
        yield Problem(path=path, value=model.chat_template, text=reason, related=related)


def _check_split(split: DatasetSplitParams, path: Path) -> Iterator[Problem]:
    registry = get_registry()
    yield from _check_block(path, "collator", split, registry.collators)
    for index, dataset in enumerate(split.datasets):
        if dataset.holdout_part == "train":
            yield from _check_block((*path, "datasets", index), "dataset", dataset, Datasets())


def _check_training(training: TrainingParams) -> Iterator[Problem]:
    registry = get_registry()
    yield from _check_block(("training",), "trainer", training, registry.trainers, "trainer_type")
    yield from _look_up(("training", "optimizer"), training.optimizer, registry.optimizers.__getitem__)


def _check_ignored(config: RunConfig) -> Iterator[Problem]:
    name = config.training.trainer_type
    trainer = known(get_registry().trainers, name)
    for path in (tuple(field.split(".")) for field in (trainer.ignored_fields if trainer else ())):
        section: Any = config
        for step in path[:-1]:
            section = getattr(section, step)
        if _is_changed(section, path[-1]):
            text = f"the trainer {name} cannot honour it; remove it or choose another trainer_type"
            related = (("training", "trainer_type"),)
            yield Problem(path=path, value=getattr(section, path[-1]), text=text, related=related)


def _is_changed(params: BaseModel, name: str) -> bool:
    """Set to something else than its default: a resolved configuration names the defaults too."""
    field = type(params).model_fields[name]
    return bool(getattr(params, name) != field.get_default(call_default_factory=True))


def _check_peft(peft: PeftParams) -> Iterator[Problem]:
    """The quantizer takes the fields of ``peft`` that it has as well, and its own options over them."""
    path: Path = ("peft", "quantizer_kwargs")
    table = get_registry().quantizers
    yield from _look_up(("peft", "quantizer"), peft.quantizer, table.__getitem__)
    if peft.quantizer_kwargs and not (peft.quantizer or peft.q_lora):
        text = "options of which quantizer? Set peft.quantizer, or peft.q_lora"
        yield Problem(path=path, value=peft.quantizer_kwargs, text=text, related=(("peft", "quantizer"),))
    spec = known(table, peft.quantizer)
    if spec and peft.quantizer_kwargs:
        shared = peft.model_dump(include=set(spec.params().model_fields)) if spec.params else {}
        yield from check_options(spec, {**shared, **peft.quantizer_kwargs}, path)


def _check_block(
    path: Path, kind: str, params: BaseModel, table: Mapping[str, Any], field: str | None = None
) -> Iterator[Problem]:
    """The name of a plugin's thing in a section, and the options for it beside the name."""
    name_field, options_field = field or f"{kind}_name", f"{kind}_kwargs"
    name_path, options_path = (*path, name_field), (*path, options_field)
    name, options = getattr(params, name_field), getattr(params, options_field)
    yield from _look_up(name_path, name, table.__getitem__)
    spec = known(table, name)
    if spec:
        for problem in check_options(spec, options, options_path, related=(name_path,)):
            unknown = problem.path[:-1] == options_path and problem.path[-1] not in _options_of(spec)
            yield _with_owners(problem, kind, table) if unknown else problem
    elif name is None and options:
        yield Problem(path=options_path, value=options, text=f"options of which {kind}? Set {name_field} too")


def _with_owners(problem: Problem, kind: str, table: Mapping[str, Any]) -> Problem:
    """The problem of an unknown option, and which others of the table take one of that name."""
    key = problem.path[-1]
    owners = [name for name in table if key in _options_of(table[name])]
    own = f"; {key} is an option of the {kind} {' or '.join(owners)}" if owners else ""
    return replace(problem, text=problem.text + own)


def _options_of(spec: HasParams) -> set[str]:
    """The names of what it takes; none where a broken plugin cannot say, which is reported where it is used."""
    try:
        return _taken(spec.params()) if spec.params else set()
    except Exception:
        return set()


def known(table: Mapping[str, Any], name: str | None) -> Any:
    """The record of that name, or None where the name is not set or wrong (which is reported elsewhere)."""
    try:
        return table[name] if name is not None else None
    except GraftworkError:
        return None


def _look_up(
    path: Path, name: str | None, lookup: Callable[[str], object], related: tuple[Path, ...] = ()
) -> Iterator[Problem]:
    if name is None:
        return
    try:
        lookup(name)
    except GraftworkError as error:
        yield Problem(path=path, value=name, text=str(error), related=related)


def check_options(
    spec: HasParams, options: Mapping[str, Any], path: Path, related: tuple[Path, ...] = ()
) -> Iterator[Problem]:
    """The mistakes in an option block, which lies at ``path``."""
    if spec.params is None:
        if options:
            text = f"{spec.name} takes no options; remove them"
            yield Problem(path=path, value=dict(options), text=text, related=related)
        return
    try:
        model = spec.params()
        model.model_validate(dict(options))
    except ValidationError as error:
        yield from problems_of(error, model, options, path)
    except Exception as error:
        # A plugin's code: whatever it raises is a mistake of the plugin, reported in its place.
        yield Problem(path=path, text=f"the options of {spec.name} cannot be checked: {type(error).__name__}: {error}")
        return
    yield from _unknown_options(model, options, path)


def _unknown_options(model: type[BaseModel], options: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """A model that would let unknown keys pass without a word still gets them reported."""
    if model.model_config.get("extra") in ("forbid", "allow"):
        return
    taken = _taken(model)
    for key in options:
        if key not in taken:
            yield Problem(path=(*path, key), value=options[key], text=f"unknown key; {did_you_mean(key, taken)}")


def _taken(model: type[BaseModel]) -> set[str]:
    """The names of a model's options, also the other ones that they go by."""
    return {*known_names(model), *(field.alias for field in model.model_fields.values() if field.alias)}
