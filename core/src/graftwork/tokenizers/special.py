"""Special tokens: which there are, their ids, and who said so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.chat.template import TemplateSource, find_template

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from graftwork.specs import ModelFamily

PAD_TEXTS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|padding|>")
"""Special tokens that exist to pad with. ``<unk>`` and end-of-text tokens are not among them: they have a meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialToken:
    """A token's text and id, and where its role was found."""

    text: str
    id: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """The special tokens of a tokenizer by role; None is a role that it does not fill."""

    bos_token: SpecialToken | None
    eos_token: SpecialToken | None
    pad_token: SpecialToken | None
    unk_token: SpecialToken | None
    stop_tokens: tuple[SpecialToken, ...]


def get_default_special_tokens(tokenizer: Any, *, family: ModelFamily | str | None = None) -> SpecialTokens:
    """The special tokens of ``tokenizer`` (a :class:`graftwork.Tokenizer` or one of transformers), or of the one
    that a model's name leads to.

    A role that the tokenizer leaves open is filled from the family, and the pad token also from the texts that
    vocabularies use for it, where the token exists.
    """
    if isinstance(tokenizer, str):
        tokenizer, family = _of_name(tokenizer, family)
    if family is None:
        family = getattr(tokenizer, "family", None)
    return special_tokens_of(tokenizer, _family(family))


def special_tokens_of(tokenizer: Any, family: ModelFamily | None) -> SpecialTokens:
    """The same for a tokenizer and a family that are at hand."""
    return SpecialTokens(
        bos_token=_role(tokenizer, "bos_token", family),
        eos_token=_role(tokenizer, "eos_token", family),
        pad_token=_role(tokenizer, "pad_token", family) or _first_known(tokenizer, PAD_TEXTS, "the vocabulary"),
        unk_token=_role(tokenizer, "unk_token", family),
        stop_tokens=tuple(_stop_tokens(tokenizer, family, find_stop_texts(tokenizer, None))),
    )


def stop_token_ids(
    tokenizer: Any,
    *,
    family: ModelFamily | None = None,
    template: TemplateSource | str | None = None,
    generation_config: Any = None,
) -> frozenset[int]:
    """The ids at which generation ends: the end-of-text token, the family's stop tokens and the template's stop
    texts as far as the vocabulary has them, and those of ``generation_config`` (an object or a dictionary).
    """
    stops = _stop_tokens(tokenizer, family, find_stop_texts(tokenizer, template))
    return frozenset({token.id for token in stops} | _configured_ids(generation_config))


def find_stop_texts(tokenizer: Any, template: TemplateSource | str | None) -> tuple[str, ...]:
    """The stop texts of ``template``, or of the one that the tokenizer carries."""
    if template is None and not getattr(tokenizer, "chat_template", None):
        return ()
    return find_template(template, tokenizer).stop


def token_id(tokenizer: Any, text: str) -> int | None:
    """The id of the token whose whole text is ``text``; None where the vocabulary has none."""
    if not text:
        return None
    find = tokenizer.control_id if hasattr(tokenizer, "control_id") else tokenizer.backend_tokenizer.token_to_id
    index: int | None = find(text)
    return index


def _stop_tokens(tokenizer: Any, family: ModelFamily | None, texts: Iterable[str]) -> Iterable[SpecialToken]:
    claims = [(_own(tokenizer, "eos_token"), "the tokenizer's eos_token")]
    claims += [(text, "the chat template") for text in texts]
    if family is not None:
        claims += [(text, f"the family {family.name}") for text in family.stop_tokens]
    seen: set[int] = set()
    for text, origin in claims:
        index = token_id(tokenizer, text) if text is not None else None
        if text is not None and index is not None and index not in seen:
            seen.add(index)
            yield SpecialToken(text=text, id=index, origin=origin)


def _configured_ids(generation_config: Any) -> set[int]:
    if isinstance(generation_config, dict):
        ids = generation_config.get("eos_token_id")
    else:
        ids = getattr(generation_config, "eos_token_id", None)
    if ids is None:
        return set()
    return {ids} if isinstance(ids, int) else {int(index) for index in ids}


def _role(tokenizer: Any, role: str, family: ModelFamily | None) -> SpecialToken | None:
    own = _own(tokenizer, role)
    if own is not None:
        index = token_id(tokenizer, own)
        if index is not None:
            return SpecialToken(text=own, id=index, origin="the tokenizer")
    if family is None or role not in family.special_tokens:
        return None
    return _first_known(tokenizer, [family.special_tokens[role]], f"the family {family.name}")


def _own(tokenizer: Any, role: str) -> str | None:
    """The text that the tokenizer itself gives ``role``."""
    if hasattr(tokenizer, "roles"):
        text: str | None = tokenizer.roles.get(role)
        return text
    return getattr(tokenizer, role, None)


def _first_known(tokenizer: Any, texts: Iterable[str], origin: str) -> SpecialToken | None:
    for text in texts:
        index = token_id(tokenizer, text)
        if index is not None:
            return SpecialToken(text=text, id=index, origin=origin)
    return None


def _family(family: ModelFamily | str | None) -> ModelFamily | None:
    if not isinstance(family, str):
        return family
    from graftwork.registry import get_registry

    return get_registry().families[family]


def _of_name(name: str, family: ModelFamily | str | None) -> tuple[Any, ModelFamily | str | None]:
    from graftwork.builders.tokenizer import build_tokenizer, tokenizer_folder
    from graftwork.config import ModelParams
    from graftwork.tokenizers.load import family_of_folder

    params = ModelParams(model_name=name)
    folder: Path = tokenizer_folder(params)
    return build_tokenizer(params), family or family_of_folder(folder)
