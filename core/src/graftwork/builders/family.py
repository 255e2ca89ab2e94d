"""Which family a model belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.registry import get_registry
from graftwork.sources import locate, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftwork.config import ModelParams
    from graftwork.specs import ModelFamily


def family_of(model_or_config: Any, explicit: str | None = None) -> ModelFamily:
    """The family of a model, a PEFT model or a configuration; ``explicit`` (``name`` or ``dist:name``) wins.

    Raises :class:`ClashError` where two families claim the model and none is chosen.
    """
    config = getattr(model_or_config, "config", model_or_config)
    return choose_family(config.model_type, getattr(config, "architectures", None) or (), explicit)


def choose_family(model_type: str | None, architectures: Sequence[str], explicit: str | None) -> ModelFamily:
    """As :func:`family_of`, from what ``config.json`` says."""
    registry = get_registry()
    return registry.families[explicit] if explicit else registry.family_for(model_type, tuple(architectures))


def family_of_params(params: ModelParams) -> ModelFamily:
    """The family of the model that ``params`` names, from its preset or its ``config.json``; loads no weights."""
    from graftwork.builders.cards import model_of_card

    registry = get_registry()
    params = model_of_card(params)
    if params.family:
        return registry.families[params.family]
    resolved = resolve(params.model_name, revision=params.model_revision)
    if resolved.preset is not None:
        return registry.family_of_preset(resolved.preset.name)
    from graftwork.sources.local import read_config

    values = read_config(locate(resolved, trust_remote_code=params.trust_remote_code))
    return registry.family_for(values.get("model_type"), tuple(values.get("architectures") or ()))
