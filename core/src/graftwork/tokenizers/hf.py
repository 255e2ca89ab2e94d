"""Tokenizer files as transformers has them, read so that the ids are those of the model's authors."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from graftwork.errors import MissingExtraError, ModelError
from graftwork.tokenizers.sentencepiece import as_sentencepiece

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def load(path: Path, kwargs: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer in the folder ``path``; ``kwargs`` go to ``from_pretrained``.

    A ``tokenizer.json`` is taken as it is: the model-specific classes of transformers 5 build some tokenizers
    anew and lose leading spaces (15 of 23 public Phi-3 vectors agree; the file agrees with all). Raises
    :class:`~graftwork.errors.ModelError` where the files give no fast tokenizer.
    """
    if (path / "tokenizer.json").is_file() and not kwargs.get("trust_remote_code"):
        return _from(PreTrainedTokenizerFast, path, kwargs)
    model = path / "tokenizer.model"
    if not model.is_file():
        return _from(AutoTokenizer, path, kwargs)
    _refuse_ranks(model)
    _require_sentencepiece(model)
    return as_sentencepiece(_from(AutoTokenizer, path, kwargs), model)


def _from(cls: Any, path: Path, kwargs: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    try:
        tokenizer = cls.from_pretrained(path, **kwargs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
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


def _refuse_ranks(model: Path) -> None:
    """Meta's Llama 3 file holds ranks only: without the special tokens and the split pattern its ids are wrong."""
    with model.open("rb") as file:
        first = file.readline(200).split()
    if len(first) == 2 and first[1].isdigit():
        raise ModelError(
            f"{model} holds tiktoken ranks, without special tokens and split pattern: use the tokenizer.json "
            "that is published beside it (set model.tokenizer_name to a folder or Hub id that has one)"
        )


def _require_sentencepiece(model: Path) -> None:
    # Without protobuf transformers takes the file for tiktoken's and dies with "Error parsing line b'\x0e'".
    missing = [
        name
        for name, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"))
        if not _has(module)
    ]
    if missing:
        raise MissingExtraError(
            f"{model} is a SentencePiece file, and {' and '.join(missing)} is not installed: "
            f"pip install {' '.join(missing)}, or use a folder with a tokenizer.json"
        )


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package, google, is missing
        return False
