"""Vocabularies of bytes with ranks: bare tiktoken files and tekken files."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graftwork.errors import ClashError, ModelError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from graftwork.specs import ModelFamily, RankLayout
    from graftwork.tokenizers.files import TokenizerFile

# The special tokens of tekken files up to version v7, which do not list them; later files do.
# https://github.com/mistralai/mistral-common, tokens/tokenizers/tekken.py
_TEKKEN_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_TEKKEN_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Bytes to id, where a lower id merges first; the pattern that cuts a text before; the special tokens."""

    path: Path
    ids: Mapping[bytes, int]
    split_regex: str
    special: Mapping[str, int]
    roles: Mapping[str, str] = field(default_factory=dict)
    family: ModelFamily | None = None


def read(file: TokenizerFile, *, family: ModelFamily | None = None, split_regex: str | None = None) -> Ranks:
    """The vocabulary in ``file``. Bare ranks are completed from the layout that a family declares."""
    ranks = _tekken(file.path) if file.content == "tekken" else _completed(file.path, family)
    return ranks if split_regex is None else replace(ranks, split_regex=split_regex)


def read_bare(path: Path) -> dict[bytes, int]:
    """A line a token: its bytes in base64, its rank. Raises :class:`ModelError` with the line that is not so."""
    ids: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ids[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ModelError(f"{path}, line {number}: {line[:40]!r} is no base64 token with its rank") from error
    return ids


def _completed(path: Path, family: ModelFamily | None) -> Ranks:
    ids = read_bare(path)
    owner, layout = _layout(path, len(ids), family)
    first = max(ids.values()) + 1
    return Ranks(
        path=path,
        ids=ids,
        split_regex=layout.split_regex,
        special={text: first + index for index, text in enumerate(layout.special_tokens)},
        roles={role: text for role, text in owner.special_tokens.items() if text in layout.special_tokens},
        family=owner,
    )


def _layout(path: Path, count: int, family: ModelFamily | None) -> tuple[ModelFamily, RankLayout]:
    """The family's only layout, else the one for files of ``count`` ranks among all families'."""
    if family is not None and len(family.rank_layouts) == 1:
        return family, family.rank_layouts[0]
    asked = [family] if family is not None and family.rank_layouts else list(get_registry().families.values())
    fitting = [(owner, layout) for owner in asked for layout in owner.rank_layouts if layout.ranks == count]
    if len(fitting) > 1:
        names = " or ".join(owner.name for owner, _ in fitting)
        raise ClashError(f"{path} holds {count} tiktoken ranks, and several families have such files: family={names}")
    if not fitting:
        raise ModelError(
            f"{path} holds tiktoken ranks, without special tokens and split pattern, and no installed family declares "
            f"those for {count} ranks: install the family's plugin or name it (family), or use the tokenizer.json that "
            "is published beside it (set model.tokenizer_name to a folder or Hub id that has one)"
        )
    return fitting[0]


def _tekken(path: Path) -> Ranks:
    try:
        document = json.loads(path.read_bytes())
        return _tekken_ranks(path, document)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{path} is no tekken vocabulary that can be read: {error!r}") from error


def _tekken_ranks(path: Path, document: Mapping[str, Any]) -> Ranks:
    """Special tokens have the first ids; of the others as many count as the vocabulary's size leaves room for."""
    config = document["config"]
    reserved = config["default_num_special_tokens"]
    listed = document.get("special_tokens")
    named = list(_TEKKEN_SPECIAL) if listed is None else [token["token_str"] for token in listed]
    named += [f"<SPECIAL_{index}>" for index in range(len(named), reserved)]
    kept = document["vocab"][: config["default_vocab_size"] - reserved]
    return Ranks(
        path=path,
        ids={base64.b64decode(token["token_bytes"]): token["rank"] + reserved for token in kept},
        split_regex=config["pattern"],
        special={text: index for index, text in enumerate(named)},
        roles={role: text for role, text in _TEKKEN_ROLES.items() if text in named},
    )
