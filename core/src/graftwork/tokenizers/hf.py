"""Tokenizer files as transformers has them, read so that the ids are those of the model's authors."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from graftwork.errors import MissingExtraError, ModelError
from graftwork.tokenizers import sentencepiece

if TYPE_CHECKING:
    from collections.abc import Mapping

_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


def load(path: Path, kwargs: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer in the folder ``path``; ``kwargs`` go to ``from_pretrained``.

    A ``tokenizer.json`` is taken as it is: the model-specific classes of transformers 5 build some tokenizers
    anew and lose leading spaces (15 of 23 public Phi-3 vectors agree; the file agrees with all). Raises
    :class:`~graftwork.errors.ModelError` where the files give no fast tokenizer.
    """
    if kwargs.get("trust_remote_code"):
        return _from(AutoTokenizer, path, path, kwargs)
    if (path / "tokenizer.json").is_file():
        return _from(PreTrainedTokenizerFast, path, path, kwargs)
    if (path / "tokenizer.model").is_file():
        return _from_sentencepiece(path, kwargs)
    return _from(AutoTokenizer, path, path, kwargs)


def _from_sentencepiece(path: Path, kwargs: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """By way of a ``tokenizer.json`` beside copies of the other files, which transformers then reads as they are."""
    model = path / "tokenizer.model"
    _refuse_ranks(model)
    _require_sentencepiece(model)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file in _BESIDE:
            if (path / file).is_file():
                shutil.copyfile(path / file, folder / file)
        config = folder / "tokenizer_config.json"
        settings = json.loads(config.read_text("utf-8")) if config.is_file() else {}
        backend = sentencepiece.convert(model, add_bos=settings.get("add_bos_token", True))
        backend.save(str(folder / "tokenizer.json"))
        named = {key: text for key, text in sentencepiece.named_tokens(model).items() if key not in settings}
        tokenizer = _from(PreTrainedTokenizerFast, folder, path, {**named, **kwargs})
    tokenizer.name_or_path = str(path)
    return tokenizer


def _from(cls: Any, folder: Path, path: Path, kwargs: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    try:
        tokenizer = cls.from_pretrained(folder, **kwargs)
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
    modules = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    missing = [name for name, module in modules.items() if not _has(module)]
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
