"""Cards in :class:`graftwork.ModelParams`: the name of one replaced by what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.builders.fairseq2_names import FIELDS
from graftwork.sources.cards import library
from graftwork.sources.resolve import checkpoint_of, resolve

if TYPE_CHECKING:
    from graftwork.config import ModelParams


def model_of_card(params: ModelParams) -> ModelParams:
    """``params`` with the card that ``model_name`` is, if it is one, written out: its checkpoint, or for fresh weights
    its architecture; its family; and its overrides under ``model_kwargs``.
    """
    card = resolve(params.model_name, revision=params.model_revision).card
    if card is None:
        return params
    overrides = {FIELDS.get(key, key): value for key, value in card.model_config_override.items()}
    found: dict[str, Any] = {
        "model_kwargs": {**overrides, **params.model_kwargs},
        "family": params.family or card.model_family,
    }
    if card.model_arch is not None and not params.load_pretrained_weights:
        return params.model_copy(update={**found, "model_name": f"preset:{card.model_arch}", "model_revision": None})
    checkpoint = checkpoint_of(card, revision=params.model_revision)
    name = f"hf://{checkpoint.name}" if checkpoint.kind == "hub" else checkpoint.name
    return params.model_copy(update={**found, "model_name": name, "model_revision": checkpoint.revision})


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


def is_file(name: str) -> bool:
    """Whether a tokenizer's name is that of a single file here."""
    return "/" in name and Path(name.removeprefix("file://")).expanduser().is_file()
