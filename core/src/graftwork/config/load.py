"""``load_config``: file, environment and command line in; one checked configuration, or every mistake, out."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from graftwork.config.checks import check_all, notices_of
from graftwork.config.fields import model_at, section_in
from graftwork.config.layers import Draft, read_environment, read_file, read_overrides
from graftwork.config.problems import Problem, problems_of, without_consequences
from graftwork.config.run import RunConfig
from graftwork.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graftwork.config.origins import Origin, Origins, Path


logger = logging.getLogger(__name__)


def load_config(
    path: str | os.PathLike[str] | None,
    overrides: Sequence[str] = (),
    *,
    env: Mapping[str, str] | None = None,
) -> RunConfig:
    """Reads and checks the configuration of a run.

    ``path`` is a YAML file, or None for a configuration that stands in ``overrides`` alone. Over the file come
    the variables ``GRAFTWORK_<SECTION>__<FIELD>`` of ``env`` (default: the process's), then ``overrides``
    (``training.max_steps=10`` or ``--training.max_steps 10``).

    Raises :class:`graftwork.errors.ConfigError` with every mistake: unknown keys and names, wrong values,
    missing files, options that a plugin does not take, settings that contradict each other.
    """
    draft = Draft(RunConfig)
    if path is not None:
        read_file(draft, FilePath(path))
        _refuse_components(draft.data, path)
    read_environment(draft, os.environ if env is None else env)
    read_overrides(draft, overrides)
    config, problems = _validate(draft)
    _raise(problems, draft.origins, str(path) if path is not None else "configuration")
    for notice in notices_of(config):
        logger.warning(notice)
    return config


def inspect_config(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, env: Mapping[str, str] | None = None
) -> tuple[RunConfig, dict[str, Problem]]:
    """As :func:`load_config`, but with the mistakes, as they are said, beside the configuration, in which what is
    wrong has its default.

    Raises :class:`graftwork.errors.UsageError` where there is no YAML to look at.
    """
    draft = Draft(RunConfig)
    read_file(draft, FilePath(path))
    _refuse_components(draft.data, path)
    read_environment(draft, os.environ if env is None else env)
    read_overrides(draft, overrides)
    config, problems = _validate(draft)
    ordered = sorted(problems, key=lambda problem: _order(problem.place(draft.origins)))
    return config, {problem.render(draft.origins): problem for problem in ordered}


def _refuse_components(data: Any, path: str | os.PathLike[str]) -> None:
    from graftwork.config.components import names_components

    if names_components(data):
        raise UsageError(
            f"{path} has components (_component_), as torchtune's files do: graft validate checks it, and "
            "graftwork.instantiate builds its parts; a run needs a graftwork configuration (graft recipes ls)"
        )


def check_config(config: RunConfig) -> None:
    """The checks of :func:`load_config` that look beyond single fields, for a configuration built in Python.

    Raises :class:`graftwork.errors.ConfigError` with every mistake.
    """
    _raise(check_all(config), config._origins, "RunConfig")


def _raise(problems: Sequence[Problem], origins: Origins, source: str) -> None:
    if problems:
        ordered = sorted(problems, key=lambda problem: _order(problem.place(origins)))
        raise ConfigError([problem.render(origins) for problem in ordered], source=source)


def _order(origin: Origin | None) -> tuple[bool, int]:
    """Lines of the file from top to bottom, then what has no line."""
    return (origin is None or origin.line is None, origin.line or 0 if origin else 0)


def _validate(draft: Draft) -> tuple[RunConfig, list[Problem]]:
    """Checks the fields; then, with the wrong ones set aside, everything that looks at several."""
    problems = list(draft.problems)
    broken = {problem.path for problem in problems}
    data = draft.data
    while True:
        try:
            config = RunConfig.model_validate(data)
            break
        except ValidationError as error:
            found = problems_of(error, RunConfig, data)
        problems.extend(found)
        paths = {_without_indices(problem.path) for problem in found}
        data = _without(data, paths)
        broken |= paths
    if config.model.peft_params is None:
        draft.origins.move(("model", "peft_params"), ("peft",))
    config._origins = draft.origins
    return config, problems + without_consequences(check_all(config), broken)


def _without_indices(path: Path) -> Path:
    """A wrong list item goes with its list: without it the others would change their numbers."""
    while isinstance(path[-1], int):
        path = path[:-1]
    return path


def _without(data: dict[str, Any], paths: Iterable[Path]) -> dict[str, Any]:
    """A copy without the values at ``paths``. What is required but missing gets a stand-in."""
    mended = copy.deepcopy(data)
    for path in paths:
        block: Any = mended
        for step in path[:-1]:
            block = block[step]
        block.pop(path[-1], None)
        owner = model_at(RunConfig, path[:-1])
        field = owner.model_fields.get(str(path[-1])) if owner else None
        if field is not None and field.is_required():
            block[path[-1]] = {"model_name": "?"} if section_in(field.annotation) else "?"
    return mended
