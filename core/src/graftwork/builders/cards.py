"""Cards in :class:`graftwork.ModelParams`: the name of one replaced by what it says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.builders.fairseq2_names import FIELDS, RULED
from graftwork.errors import ModelError
from graftwork.registry import get_registry
from graftwork.sources.cards import library
from graftwork.sources.resolve import checkpoint_of, resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from graftwork.config import ModelParams
    from graftwork.sources.cards import Card

logger = logging.getLogger("graftwork.model")


def model_of_card(params: ModelParams) -> ModelParams:
    """``params`` with the card that ``model_name`` is, if it is one, written out: its checkpoint, or for fresh weights
    its architecture; its family; and its overrides under ``model_kwargs``.
    """
    card = resolve(params.model_name, revision=params.model_revision).card
    if card is None:
        return params
    overrides = _overrides(card)
    found: dict[str, Any] = {
        "model_kwargs": {**overrides, **params.model_kwargs},
        "family": params.family or card.model_family,
    }
    if card.model_arch is not None and not params.load_pretrained_weights:
        return params.model_copy(update={**found, "model_name": f"preset:{card.model_arch}", "model_revision": None})
    checkpoint = checkpoint_of(card, revision=params.model_revision)
    name = f"hf://{checkpoint.name}" if checkpoint.kind == "hub" else checkpoint.name
    return params.model_copy(update={**found, "model_name": name, "model_revision": checkpoint.revision})


def compare_with_arch(params: ModelParams, config: PretrainedConfig) -> None:
    """Says where a checkpoint is not what its card's ``model_arch`` is; the checkpoint's own configuration counts, as
    its weights fit that one. ``params`` are those that name the card, ``config`` is the checkpoint's.

    Raises :class:`ModelError` where it is another kind of model.
    """
    card = resolve(params.model_name, revision=params.model_revision).card
    if card is None or card.model_arch is None or not params.load_pretrained_weights:
        return
    arch = get_registry().presets[card.model_arch].config()
    text = f"card {card.name!r} ({card.place}): model_arch {card.model_arch}"
    if arch.model_type != config.model_type:
        raise ModelError(
            f"{text} is a {arch.model_type} model, and its checkpoint a {config.model_type}: mend the card"
        )
    changed = {*_overrides(card), *params.model_kwargs}
    differing = [
        f"{key} {getattr(config, key, None)!r} instead of {getattr(arch, key)!r}"
        for key in get_registry().presets[card.model_arch].values
        # an instruct model ends its turns in other tokens than its base, and is of the same architecture
        if key not in changed and not key.endswith("_token_id") and getattr(config, key, None) != getattr(arch, key)
    ]
    if differing:
        logger.info("%s is not what its checkpoint says, which counts: %s", text, "; ".join(differing))


def tokenizer_of_card(params: ModelParams) -> ModelParams:
    """``params`` with the card that ``tokenizer_name`` (or else ``model_name``) is, if it is one, written out: where
    its tokenizer is, whose special tokens it has, and how it is read.
    """
    name = params.tokenizer_name or params.model_name
    revision = None if params.tokenizer_name else params.model_revision
    if is_file(name):
        return params
    card = resolve(name, revision=revision).card
    if card is None:
        return params
    tokenizer = library().tokenizer_of(card)
    options = dict(tokenizer.options)
    at = f"@{revision}" if revision and tokenizer.place == card.checkpoint else ""
    found = {
        "tokenizer_name": f"{tokenizer.place}{at}",
        "tokenizer_impl": params.tokenizer_impl or options.pop("impl", None),
        "tokenizer_kwargs": {**options, **params.tokenizer_kwargs},
        "family": params.family or tokenizer.family,
    }
    return params.model_copy(update=found)


def _overrides(card: Card) -> dict[str, Any]:
    """What a card says about the configuration, by transformers' names.

    Raises :class:`ModelError` for what only becomes one by a rule, from several values of the card's architecture.
    """
    for key in card.model_config_override:
        if key in RULED - {"rope_theta"}:
            name = {"ffn": "intermediate_size, the width itself", "dro": "attention_dropout"}.get(
                key[:3], "rope_parameters"
            )
            where = f"card {card.name!r} ({card.place}): model_config_override"
            raise ModelError(f"{where}: {key} is no field of transformers by itself: write {name}")
    return {FIELDS.get(key, key): value for key, value in card.model_config_override.items()}


def is_file(name: str) -> bool:
    """Whether a tokenizer's name is that of a single file here."""
    return "/" in name and Path(name.removeprefix("file://")).expanduser().is_file()
