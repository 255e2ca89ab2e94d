"""``load_config``: file, environment and command line in; one checked configuration, or every mistake, out."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from graftwork.config.checks import check_all
from graftwork.config.layers import Draft, read_environment, read_file, read_overrides
from graftwork.config.origins import Origins, Path
from graftwork.config.problems import Problem, problems_of, without_consequences
from graftwork.config.run import RunConfig
from graftwork.errors import ConfigError


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
    read_environment(draft, os.environ if env is None else env)
    read_overrides(draft, overrides)
    config, problems = _validate(draft)
    _raise(problems, draft.origins, str(path) if path is not None else "configuration")
    return config


def check_config(config: RunConfig) -> None:
    """The checks of :func:`load_config` that look beyond single fields, for a configuration built in Python.

    Raises :class:`graftwork.errors.ConfigError` with every mistake.
    """
    _raise(check_all(config, config._origins), config._origins, "RunConfig")


def _raise(problems: Sequence[Problem], origins: Origins, source: str) -> None:
    if problems:
        raise ConfigError([problem.render(origins) for problem in problems], source=source)


def _validate(draft: Draft) -> tuple[RunConfig, list[Problem]]:
    """Checks the fields; then, with the wrong ones set aside, everything that looks at several."""
    problems = list(draft.problems)
    data = {key: value for key, value in draft.data.items() if value is not None}
    while True:
        try:
            config = RunConfig.model_validate(data)
            break
        except ValidationError as error:
            found = problems_of(error, RunConfig, data)
        problems.extend(found)
        data = _without(data, [problem.path for problem in found])
    config._origins = draft.origins
    broken = {problem.path for problem in problems}
    return config, problems + without_consequences(check_all(config, draft.origins), broken)


def _without(data: dict[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """A copy without the values at ``paths``. What is required but missing gets a stand-in."""
    mended = copy.deepcopy(data)
    for path in paths:
        while isinstance(path[-1], int):
            path = path[:-1]  # noqa: PLW2901 - an item goes with its list, lest the others change their numbers
        block: Any = mended
        for step in path[:-1]:
            block = block[step] if isinstance(block, list) or step in block else block.setdefault(step, {})
        if block.pop(path[-1], None) is None:
            block[path[-1]] = _STAND_INS.get(path[-1])
    return mended


_STAND_INS: Mapping[str | int, Any] = {"model": {"model_name": "?"}, "model_name": "?", "dataset_name": "?"}
