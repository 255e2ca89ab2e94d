"""Ranked bytes, read and encoded by tiktoken: Meta's Llama 3 files, Mistral's tekken files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError, UsageError
from graftwork.tokenizers import beside, codec, files
from graftwork.tokenizers import ranks as ranked
from graftwork.tokenizers.loaded import LoadedTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from graftwork.tokenizers.beside import Beside
    from graftwork.tokenizers.ranks import Ranks

CONTENTS: tuple[files.Content, ...] = ("tekken", "ranks")


def load(path: Path, options: Mapping[str, Any]) -> LoadedTokenizer:
    """The tokenizer in the ranks or the tekken file at ``path``, a folder or a file."""
    own, kwargs = codec.known_options(options)
    file = files.find(path, CONTENTS)
    if file is None:
        raise ModelError(f"there are neither tiktoken ranks nor a tekken.json at {path}; leave impl out to have others")
    codec.require(file.path, extra="tiktoken", modules={"tiktoken": "tiktoken"})
    ranks = ranked.read(file, family=own["family"], split_regex=own["split_regex"])
    return LoadedTokenizer(
        path=path,
        codec=TiktokenCodec(ranks, beside.read(path), kwargs),
        family=own["family"] or ranks.family,
        use_eot=bool(own["use_eot"]),
    )


class TiktokenCodec:
    """A tiktoken ``Encoding`` of ``ranks``."""

    impl = "tiktoken"

    def __init__(self, ranks: Ranks, settings: Beside, kwargs: Mapping[str, Any]) -> None:
        self.control = ranks.special
        self.roles = {**ranks.roles, **settings.roles}
        self.chat_template = settings.chat_template
        self.size = max([*ranks.ids.values(), *ranks.special.values()]) + 1
        self._ranks, self._beside, self._kwargs = ranks, settings, kwargs
        self._texts = {index: text for text, index in ranks.special.items()}
        self._encoding = _encoding(ranks)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of ``text``."""
        if allow_special:
            return list(self._encoding.encode(text, allowed_special="all"))
        return list(self._encoding.encode_ordinary(text))

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        kept = [index for index in ids if index not in self._texts] if skip_special else list(ids)
        return str(self._encoding.decode(kept))

    def fast(self) -> PreTrainedTokenizerFast:
        """The same ranks for transformers."""
        from graftwork.tokenizers.ranks_fast import convert

        return beside.fast(convert(self._ranks, add_bos=self._beside.add_bos), self._beside, self.roles, self._kwargs)


def _encoding(ranks: Ranks) -> Any:
    from tiktoken import Encoding

    try:
        return Encoding(
            ranks.path.name,
            pat_str=ranks.split_regex,
            mergeable_ranks=dict(ranks.ids),
            special_tokens=dict(ranks.special),
        )
    except ValueError as error:
        raise UsageError(
            f"{ranks.path}: the pattern {ranks.split_regex!r} is no regular expression: {error}"
        ) from error
