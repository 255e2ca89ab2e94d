"""A SentencePiece file as a fast tokenizer with SentencePiece's own ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

_SPACE = "▁"
# Leading, double, trailing and only spaces, line ends, and what has to fall back to bytes.
_PROBES = ("Hello world", " Hello", "  two  spaces ", " ", "\n\n a\tb", "ünï 🦙 漢字", "x=1.5;\n    return y")


def as_sentencepiece(tokenizer: PreTrainedTokenizerFast, model: Path) -> PreTrainedTokenizerFast:
    """``tokenizer`` with spaces treated as the file ``model`` says, proved on probe texts.

    transformers 5 splits at spaces where it builds a tokenizer from such a file alone, and loses leading and double
    ones. Raises :class:`~graftwork.errors.ModelError` where the ids still differ from SentencePiece's.
    """
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(model))
    if _differing(tokenizer, reference) is not None:
        _restore_spaces(tokenizer, reference)
    if (text := _differing(tokenizer, reference)) is not None:
        raise ModelError(
            f"{model} cannot be read as a fast tokenizer: its ids for {text!r} would differ from SentencePiece's; "
            "use a folder with a tokenizer.json (set model.tokenizer_name)"
        )
    return tokenizer


def _restore_spaces(tokenizer: PreTrainedTokenizerFast, reference: object) -> None:
    """Spaces become ``▁`` in the whole text, one put before it: what ``add_dummy_prefix`` means."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    backend.pre_tokenizer = None


def _differing(tokenizer: PreTrainedTokenizerFast, reference: object) -> str | None:
    encode = reference.encode  # type: ignore[attr-defined]
    for text in _PROBES:
        if tokenizer.encode(text, add_special_tokens=False) != encode(text):
            return text
    return None
