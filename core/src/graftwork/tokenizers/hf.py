"""Tokenizer files as transformers has them, encoded by tokenizers, so that the ids are those of the model's authors."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from graftwork.errors import ModelError, UsageError
from graftwork.tokenizers import codec, files
from graftwork.tokenizers.loaded import LoadedTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer as Backend

CONTENTS: tuple[files.Content, ...] = ("tokenizers", "vocabulary", "settings")

# Control tokens by their text, which some files add without marking them special (Phi-3's </s>).
_CONTROL_TEXTS = frozenset({"<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>"})


def load(path: Path, options: Mapping[str, Any]) -> LoadedTokenizer:
    """The tokenizer at ``path``, a folder or a file. What other implementations read is converted, with equal ids.

    Raises :class:`~graftwork.errors.ModelError` where the files give no fast tokenizer.
    """
    own, kwargs = codec.known_options(options)
    file = None if kwargs.get("trust_remote_code") else files.find(path)
    if file is not None and file.content in ("tekken", "ranks", "sentencepiece"):
        return _converted(path, file, options)
    if own["split_regex"] is not None:
        raise UsageError(f"tokenizer in {path} has its own pattern: split_regex is for tiktoken ranks; leave it out")
    return LoadedTokenizer(
        path=path,
        codec=HFCodec(_read(path, file, kwargs)),
        family=own["family"],
        use_eot=bool(own["use_eot"]),
    )


class HFCodec:
    """A fast tokenizer of transformers; special tokens in a text are text."""

    impl = "hf"

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._backend: Backend = tokenizer.backend_tokenizer
        self.size = len(tokenizer)
        self.roles = {role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
        self.control = _control(tokenizer)
        self._control_ids = frozenset(self.control.values())

    @property
    def chat_template(self) -> str | None:
        """The template that the tokenizer carries."""
        template: str | None = self.tokenizer.chat_template
        return template

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of ``text``. Only where a special token was found in it, it is encoded again without."""
        if self._backend.truncation is not None:  # transformers leaves that of its last call behind
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        text = codec.well_formed(text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if allow_special or self._control_ids.isdisjoint(ids):
            return ids
        return list(self._ordinary.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``."""
        kept = [index for index in ids if index not in self._control_ids] if skip_special else list(ids)
        return str(self._backend.decode(kept, skip_special_tokens=False))

    def fast(self) -> PreTrainedTokenizerFast:
        """The tokenizer itself."""
        return self.tokenizer

    @cached_property
    def _ordinary(self) -> Backend:
        """A second tokenizer to which every special token is text. The first stays as it is: others use it."""
        from tokenizers import Tokenizer

        document = json.loads(self._backend.to_str())
        for token in document["added_tokens"]:
            token["special"] = token["special"] or token["content"] in self.control
        ordinary = Tokenizer.from_str(json.dumps({**document, "truncation": None, "padding": None}))
        ordinary.encode_special_tokens = True
        return ordinary


def _control(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The added tokens that are markup: those marked special, those that the trained vocabulary does not have, and
    those that are known by their text. Others (Gemma's ``<h1>`` and runs of newlines) are pieces of text.
    """
    model = tokenizer.backend_tokenizer.model
    return {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in _CONTROL_TEXTS or model.token_to_id(token.content) is None
    }


def _converted(path: Path, file: files.TokenizerFile, options: Mapping[str, Any]) -> LoadedTokenizer:
    if file.content == "sentencepiece":
        from graftwork.tokenizers.sentencepiece import load as load_original
    else:
        from graftwork.tokenizers.tiktoken import load as load_original
    original = load_original(path, options)
    return LoadedTokenizer(path=path, codec=HFCodec(original.hf), family=original.family, use_eot=original.use_eot)


def _read(path: Path, file: files.TokenizerFile | None, kwargs: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A ``tokenizer.json`` is taken as it is: the model-specific classes of transformers 5 build some tokenizers
    anew and lose leading spaces (15 of 23 public Phi-3 vectors agree; the file agrees with all).
    """
    if file is None or file.content != "tokenizers":
        return _from(AutoTokenizer.from_pretrained, path if path.is_dir() else path.parent, path, kwargs)
    if path.is_file() and not _has_settings(path):
        return _from(_lone, path, path, kwargs)
    return _from(PreTrainedTokenizerFast.from_pretrained, path if path.is_dir() else path.parent, path, kwargs)


def _has_settings(file: Path) -> bool:
    """Whether the folder of ``file`` is that of a saved tokenizer, whose roles and template stand beside the file."""
    return file.name == "tokenizer.json" and (file.parent / "tokenizer_config.json").is_file()


def _lone(file: Path, **kwargs: Any) -> PreTrainedTokenizerFast:
    """A file alone names no roles: BOS and EOS are what its own post-processor puts around a text."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **kwargs)
    backend: Backend = tokenizer.backend_tokenizer
    text, whole = (backend.encode("a", add_special_tokens=flag) for flag in (False, True))
    before = whole.special_tokens_mask.index(0) if 0 in whole.special_tokens_mask else 0
    after = len(whole.ids) - before - len(text.ids)
    if before == 1 and tokenizer.bos_token is None:
        tokenizer.bos_token = whole.tokens[0]
    if after == 1 and tokenizer.eos_token is None:
        tokenizer.eos_token = whole.tokens[-1]
    return tokenizer


def _from(make: Any, source: Path, path: Path, kwargs: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    try:
        tokenizer = make(source, **kwargs)
    except Exception as error:  # the Rust library raises Exception itself for a file that it cannot read
        reason = str(error).strip().split("\n", 1)[0]
        raise ModelError(
            f"tokenizer in {path} cannot be read: {reason}; set model.tokenizer_name to another"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"tokenizer in {path} is a {type(tokenizer).__name__}, which gives no character offsets: "
            "a folder with a tokenizer.json is needed; set model.tokenizer_name"
        )
    return tokenizer
