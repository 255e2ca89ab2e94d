"""``build_tokenizer``: from :class:`graftwork.ModelParams` to a fast tokenizer with pad token and chat template."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.adapters.folder import base_of_adapter, is_adapter_only
from graftwork.builders.cards import fetched_for, is_file, tokenizer_of_card
from graftwork.chat.sandbox import compiled
from graftwork.chat.template import find_template
from graftwork.errors import ModelError, UsageError
from graftwork.registry import get_registry
from graftwork.sources import locate, resolve
from graftwork.sources.hub import fetch_tokenizer
from graftwork.tokenizers.load import choose, family_of_folder, fits
from graftwork.tokenizers.special import PAD_TEXTS, get_default_special_tokens, token_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

    from graftwork.config import ModelParams
    from graftwork.sources import ResolvedModel
    from graftwork.specs import ModelFamily

logger = logging.getLogger(__name__)


def build_tokenizer(params: ModelParams, *, stand_in_template: bool = True) -> PreTrainedTokenizerFast:
    """The tokenizer of the model that ``params`` names, or of ``tokenizer_name``.

    It gets ``model_max_length`` and a chat template: the one asked for, else its own, else the family's where the
    vocabulary has its stop tokens, else ``default``. A pad token is set where one is asked for or the vocabulary
    has one made for it; otherwise it stays None, as nothing here needs padding. No token is added but those of
    ``added_tokens``. Without ``stand_in_template`` one that has no chat template, and for which none is asked for,
    stays without.

    Raises :class:`~graftwork.errors.ModelError` where there is no tokenizer,
    :class:`~graftwork.errors.UsageError` for a token that the vocabulary does not have.
    """
    with fetched_for(params):
        params = tokenizer_of_card(params)
        folder = tokenizer_folder(params)
    family = get_registry().families[params.family] if params.family else family_of_folder(folder)
    impl = params.tokenizer_impl or (family.tokenizer_impl if family else None)
    if impl is None and params.trust_remote_code:
        impl = "hf"  # code that comes with a model is a class of transformers
    tokenizer = choose(folder, impl).load(folder, {**_kwargs(params), "family": family}).hf
    _add_tokens(tokenizer, params.added_tokens)
    _set_pad_token(tokenizer, params, family)
    if params.model_max_length is not None:
        tokenizer.model_max_length = params.model_max_length
    if stand_in_template or params.chat_template or tokenizer.chat_template:
        _set_template(tokenizer, params, family)
    return tokenizer


def tokenizer_folder(params: ModelParams) -> Path:
    """The folder (or the one file) with the tokenizer, downloaded where needed, without weights. A preset has none;
    an adapter without one has its base's.
    """
    params = tokenizer_of_card(params)
    name = params.tokenizer_name or params.model_name
    if is_file(name):
        return Path(name.removeprefix("file://")).expanduser().absolute()
    resolved = resolve(name, revision=None if params.tokenizer_name else params.model_revision)
    if resolved.preset is None:
        folder = _fetched(resolved, params.trust_remote_code)
        return folder if _readable(folder) or not is_adapter_only(folder) else _base_folder(folder, params)
    ids = ", ".join(resolved.preset.hub_ids)
    raise ModelError(
        f"model {name!r} is a preset, an architecture without files, so it has no tokenizer: set "
        f"model.tokenizer_name to a folder or a Hub id{f' such as {ids}' if ids else ''}"
    )


def _fetched(resolved: ResolvedModel, trust_remote_code: bool) -> Path:
    if resolved.kind == "hub":
        return fetch_tokenizer(resolved.name, revision=resolved.revision, trust_remote_code=trust_remote_code)
    return locate(resolved, trust_remote_code=trust_remote_code)


def _base_folder(folder: Path, params: ModelParams) -> Path:
    return _fetched(base_of_adapter(folder), params.trust_remote_code)


def _readable(folder: Path) -> bool:
    return any(fits(spec, folder) for spec in get_registry().tokenizers.values())


def _kwargs(params: ModelParams) -> dict[str, Any]:
    kwargs = {name: value for name, value in params.tokenizer_kwargs.items() if name != "pad_token"}
    if params.trust_remote_code:
        kwargs["trust_remote_code"] = True
    return kwargs


def _add_tokens(tokenizer: Any, texts: Sequence[str]) -> None:
    """Each as a special token, with the next id; one that is a token already keeps its id and becomes special."""
    if any(not text.strip() for text in texts):
        raise UsageError(f"model.added_tokens {texts!r}: a token is a text such as <tool>; remove the empty one")
    tokenizer.add_tokens(list(texts), special_tokens=True)


def _set_pad_token(tokenizer: Any, params: ModelParams, family: ModelFamily | None) -> None:
    asked = _asked_pad_token(params)
    if asked is not None:
        _require_token(tokenizer, asked, "tokenizer_pad_token")
        tokenizer.pad_token = asked
    elif tokenizer.pad_token is None:
        found = get_default_special_tokens(tokenizer, family=family).pad_token
        if found is not None:
            logger.info("pad token: %s (id %d), from %s", found.text, found.id, found.origin)
            tokenizer.pad_token = found.text


def _asked_pad_token(params: ModelParams) -> str | None:
    by_field, by_kwargs = params.tokenizer_pad_token, params.tokenizer_kwargs.get("pad_token")
    if by_field is not None and by_kwargs is not None and by_field != by_kwargs:
        raise UsageError(
            f"the pad token is given twice: model.tokenizer_pad_token {by_field!r} and "
            f"model.tokenizer_kwargs.pad_token {by_kwargs!r}; give one"
        )
    return by_field if by_field is not None else by_kwargs


def _require_token(tokenizer: Any, text: str, field: str) -> None:
    """A token that is not in the vocabulary would get an id for which the model has no embedding; one that stands
    for ordinary text would be cut out of every text as soon as it is special.
    """
    if text in tokenizer.added_tokens_encoder:
        return
    present = token_id(tokenizer, text) is not None
    reason = "is a token of ordinary text" if present else f"is not in the vocabulary of {len(tokenizer)} tokens"
    candidates: Sequence[str] = [name for name in PAD_TEXTS if token_id(tokenizer, name) is not None]
    candidates = candidates or [name for name in (tokenizer.unk_token, tokenizer.eos_token) if name]
    raise UsageError(
        f"model.{field} {text!r} {reason}, which cannot be made to pad with; "
        f"use {' or '.join(candidates) or 'a special token that the tokenizer has'}"
    )


def _set_template(tokenizer: Any, params: ModelParams, family: ModelFamily | None) -> None:
    found = find_template(params.chat_template, tokenizer, family)
    compiled(found.source)
    tokenizer.chat_template = found.source
