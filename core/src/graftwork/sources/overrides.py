"""What a card's ``model_config_override`` is by transformers' names, and what is wrong with it, said of the card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.builders.fairseq2_names import FIELDS, RULED
from graftwork.errors import ModelError, UsageError, did_you_mean
from graftwork.registry import get_registry
from graftwork.sources.config_keys import source_keys
from graftwork.sources.local import read_config

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from graftwork.sources.cards import Card


def by_transformers(card: Card) -> dict[str, Any]:
    """What a card says about the configuration, by transformers' names.

    Raises :class:`ModelError` for what only becomes one by a rule, from several values of the card's architecture.
    """
    for key in card.model_config_override:
        if key in RULED - {"rope_theta"}:
            name = {"ffn": "intermediate_size, the width itself", "dro": "attention_dropout"}.get(
                key[:3], "rope_parameters"
            )
            raise ModelError(said(card, key, f"{key} is no field of transformers by itself: write {name}"))
    return {FIELDS.get(key, key): value for key, value in card.model_config_override.items()}


def said(card: Card, key: str, text: str) -> str:
    """A mistake in the override ``key``, with its place."""
    return f"card {card.name!r} ({card.override_places.get(key, card.place)}): model_config_override: {text}"


def unknown(card: Card, key: str, model_type: str, names: Collection[str]) -> str:
    """That ``key`` is no key of a configuration that has ``names``, with the nearest that is one."""
    family = get_registry().families[card.model_family] if card.model_family else None
    theirs = {name for name, hf in FIELDS.items() if hf in names} if family is not None and family.config_class else ()
    named = f"{key!r} ({FIELDS[key]} in transformers)" if FIELDS.get(key, key) != key else repr(key)
    nearest = did_you_mean(key, {*names, *theirs})
    return said(card, key, f"{named} is no key of a {model_type} configuration: {nearest}")


def mistakes(card: Card) -> list[str]:
    """What is wrong with the names of a card's overrides, as far as that can be told without transformers."""
    try:
        changed = by_transformers(card)
        types, names = _configuration(card) if changed else ((), set())
    except UsageError as error:
        return [str(error)]
    known = [source_keys(model_type) for model_type in types]
    if not known or None in known:
        return []
    names = names.union(*(keys for keys in known if keys is not None))
    return [
        unknown(card, key, " or ".join(types), names)
        for key in card.model_config_override
        if FIELDS.get(key, key) not in names
    ]


def _configuration(card: Card) -> tuple[Sequence[str], set[str]]:
    """The model types that a card's model may have, and the keys that its configuration is known to state."""
    from graftwork.sources.cards import folder_of

    registry = get_registry()
    folder = Path(folder_of(card.checkpoint)) if card.checkpoint and "://" not in card.checkpoint else None
    if folder is not None and (folder / "config.json").is_file():
        values = read_config(folder)
        return (values["model_type"],), set(values)
    if card.model_arch is not None:
        preset = registry.presets[card.model_arch]
        return (preset.model_type,), set(preset.values)
    return (registry.families[card.model_family].model_types if card.model_family else ()), set()
