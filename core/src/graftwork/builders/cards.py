"""Cards in :class:`graftwork.ModelParams`: the name of one replaced by what it says."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.builders.changes import ChangeError
from graftwork.builders.fairseq2_names import FIELDS
from graftwork.errors import GraftworkError, ModelError, UsageError
from graftwork.registry import get_registry
from graftwork.sources.cards import library
from graftwork.sources.overrides import by_transformers, said, unknown
from graftwork.sources.resolve import check_file, checkpoint_of, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig

    from graftwork.config import ModelParams

logger = logging.getLogger("graftwork.model")


def model_of_card(params: ModelParams) -> ModelParams:
    """``params`` with the card that ``model_name`` is, if it is one, written out: its checkpoint, or for fresh weights
    its architecture; its family; and its overrides under ``model_kwargs``.
    """
    card = resolve(params.model_name, revision=params.model_revision).card
    if card is None:
        return params
    overrides = by_transformers(card)
    found: dict[str, Any] = {
        "model_kwargs": {**overrides, **params.model_kwargs},
        "family": params.family or card.model_family,
    }
    if card.model_arch is not None and not params.load_pretrained_weights:
        return params.model_copy(update={**found, "model_name": f"preset:{card.model_arch}", "model_revision": None})
    checkpoint = checkpoint_of(card, revision=params.model_revision)
    check_file(card)
    name = f"hf://{checkpoint.name}" if checkpoint.kind == "hub" else checkpoint.name
    return params.model_copy(update={**found, "model_name": name, "model_revision": checkpoint.revision})


@contextmanager
def fetched_for(params: ModelParams) -> Iterator[None]:
    """Where a card's files cannot be had, the error names what was written and what else can be done: most names of
    cards are names of architectures too.
    """
    try:
        yield
    except GraftworkError as error:
        card = resolve(params.model_name, revision=params.model_revision).card
        if card is None or card.checkpoint is None or "://" not in card.checkpoint:
            raise
        kind = ModelError if isinstance(error, UsageError) else GraftworkError
        raise kind(
            f"model.model_name {params.model_name} means the published model {card.checkpoint}, with its tokenizer: "
            f"{error}. Download it where there is a network (graft download {params.model_name}); or, for the same "
            "architecture with fresh weights, set model.load_pretrained_weights to false and model.tokenizer_name to "
            "a folder with a tokenizer"
        ) from error


@contextmanager
def said_of_card(params: ModelParams) -> Iterator[None]:
    """Where a configuration cannot have what the card of ``params`` says, the error names the card and its words."""
    try:
        yield
    except ChangeError as error:
        card = resolve(params.model_name, revision=params.model_revision).card
        written = {FIELDS.get(key, key): key for key in card.model_config_override} if card is not None else {}
        own = [written[key] for key in error.keys if key in written and key not in params.model_kwargs]
        if card is None or not own:
            raise
        if error.names:
            raise ModelError(unknown(card, own[0], error.model_type, error.names)) from error
        values = ", ".join(f"{key}={card.model_config_override[key]!r}" for key in own)
        raise ModelError(said(card, own[0], f"{values}: {error.text}")) from error


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
    changed = {*by_transformers(card), *params.model_kwargs}
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


def is_file(name: str) -> bool:
    """Whether a tokenizer's name is that of a single file here."""
    return "/" in name and Path(name.removeprefix("file://")).expanduser().is_file()
