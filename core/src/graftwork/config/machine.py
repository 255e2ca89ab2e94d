"""What this machine or the model cannot do, as far as that is known without loading: packages, devices, lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.config.names import known
from graftwork.config.problems import Problem
from graftwork.errors import GraftworkError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path as Folder

    from graftwork.config.model import ModelParams
    from graftwork.config.origins import Path
    from graftwork.config.run import RunConfig

_POSITIONS = ("max_position_embeddings", "n_positions")


def check_machine(config: RunConfig) -> Iterator[Problem]:
    """What a run would be refused for once it has loaded."""
    yield from _check_attention(config.model)
    yield from _check_optimizer(config)
    yield from _check_lengths(config)


def _check_attention(model: ModelParams) -> Iterator[Problem]:
    from graftwork.builders.attention import missing_package

    if package := missing_package(model.attn_implementation):
        text = f"needs the package {package}, which is not installed; sdpa and eager are part of torch"
        yield Problem(path=("model", "attn_implementation"), value=model.attn_implementation, text=text)


def _check_optimizer(config: RunConfig) -> Iterator[Problem]:
    """Only an optimizer that does not run everywhere is worth the second that torch takes to load."""
    name = config.training.optimizer
    spec = known(get_registry().optimizers, name)
    if spec is None or not spec.devices:
        return
    from graftwork.builders.dtype import choose_device_map, device_of

    try:
        device = device_of(choose_device_map(config.model.device_map)).type
    except GraftworkError:  # a device that is not there is said when the model is built
        return
    if device not in spec.devices:
        others = ", ".join(sorted(each for each, other in get_registry().optimizers.items() if not other.devices))
        text = f"runs on {' or '.join(spec.devices)}, and the model goes to {device} here; choose another: {others}"
        related = (("model", "device_map"),)
        yield Problem(path=("training", "optimizer"), value=name, text=text, related=related)


def _check_lengths(config: RunConfig) -> Iterator[Problem]:
    """Lengths beyond the positions of a model whose configuration lies here, where they are a table of that size."""
    paths: list[Path] = [("model", "model_max_length")]
    paths += [("data", name, "max_length") for name, split in config.data.splits().items() if split.datasets]
    asked = {path: value for path in paths if (value := _at(config, path)) is not None}
    limit = _stated_positions(config.model) if asked else None
    beyond = {path: value for path, value in asked.items() if limit is not None and value > limit}
    if not beyond:
        return
    from graftwork.builders.length import positions
    from graftwork.builders.model import model_config

    try:
        table = positions(model_config(config.model))
    except GraftworkError:  # said where the model is built
        return
    for path, value in beyond.items():
        if table is not None and value > table:
            text = f"the model's positions are a table of {table}; use at most {table}"
            yield Problem(path=path, value=value, text=text, related=(("model", "model_name"),))


def _at(config: RunConfig, path: Path) -> Any:
    value: Any = config
    for step in path:
        value = getattr(value, str(step))
    return value


def _stated_positions(model: ModelParams) -> int | None:
    """How many positions the configuration of the model names; None where it does not lie here or names none."""
    values = _stated(model)
    found = [values[name] for name in _POSITIONS if isinstance(values.get(name), int)]
    return min(found, default=None)


def _stated(model: ModelParams) -> dict[str, Any]:
    from graftwork.sources import local
    from graftwork.sources.resolve import resolve

    try:
        source = resolve(model.model_name, revision=model.model_revision)
        folder = source.path or (_downloaded(source.name) if source.kind == "hub" else None)
        values = dict(source.preset.values) if source.preset else local.read_config(folder) if folder else {}
    except GraftworkError:  # reported as a wrong name, or where the model is built
        return {}
    return {**values, **model.model_kwargs}


def _downloaded(name: str) -> Folder | None:
    from graftwork.sources.hub import cached

    return cached(name)
