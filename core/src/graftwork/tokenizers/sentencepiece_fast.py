"""A SentencePiece file as a fast tokenizer with SentencePiece's own ids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError
from graftwork.tokenizers.ranks_fast import begin_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tokenizers import Tokenizer

_SPACE = "▁"
_BPE = 2
_MANY = 1_000_000
# Leading, double, trailing and only spaces, line ends, what has to fall back to bytes, marks that combine.
_PROBES = (
    *("Hello world", " Hello", "  two  spaces ", " ", "\n\n a\tb", "ünï 🦙 漢字", "x=1.5;\n    return y"),
    *("x³\u20eby", "e\u0301①\u0301 ﬁ", "a<0x0A> ▁"),
)


def convert(model: Path, *, add_bos: bool = True, added: Mapping[str, int] | None = None) -> Tokenizer:
    """The tokenizer in the file ``model``; ``add_bos`` puts its bos token before a text, as Llama and Mistral do.
    ``added`` are special tokens that come with ids after the file's own.

    transformers 5 builds such a file's merges without the scores and splits at spaces, so that texts with leading
    or double spaces get other ids. Here the result is compared with SentencePiece on probe texts. Raises
    :class:`~graftwork.errors.ModelError` where they differ (the library normalises by graphemes, SentencePiece by
    its longest rule), and for files that are not of the BPE kind (the library's unigram model takes ``</s>`` and
    ``<0x0A>`` in a text for tokens).
    """
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
    from tokenizers import AddedToken

    proto = ModelProto.FromString(model.read_bytes())
    if proto.trainer_spec.model_type != _BPE or proto.trainer_spec.treat_whitespace_as_suffix:
        raise ModelError(
            f"{model} is no BPE model: a folder with a tokenizer.json is needed (model.tokenizer_name). "
            "graftwork.load_tokenizer encodes with it as it is"
        )
    backend = _backend(proto)
    reference = SentencePieceProcessor(model_file=str(model))
    for text in _probes(proto):
        if backend.encode(text, add_special_tokens=False).ids != reference.encode(text):
            raise ModelError(
                f"{model} cannot be read as a fast tokenizer: its ids for {text!r} would differ from SentencePiece's; "
                "use a folder with a tokenizer.json (set model.tokenizer_name)"
            )
    for text in sorted(added or {}, key=(added or {}).__getitem__):
        backend.add_special_tokens([AddedToken(text, normalized=False, special=True)])
    if add_bos and reference.bos_id() >= 0:
        begin_with(backend, reference.id_to_piece(reference.bos_id()), reference.bos_id())
    return backend


def _probes(proto: Any) -> Iterator[str]:
    yield from _PROBES
    for text in _wanted(proto):
        yield f"see {text} and{text}\n"


def _backend(proto: Any) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer

    backend = Tokenizer(_bpe(proto))
    _treat_spaces(backend, proto)
    special = [piece.piece for piece in proto.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    backend.add_tokens([AddedToken(text, normalized=True, special=False) for text in _wanted(proto)])
    return backend


def _bpe(proto: Any) -> Any:
    from tokenizers.models import BPE
    from transformers.tokenization_utils_base import generate_merges

    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    unknown = proto.pieces[proto.trainer_spec.unk_id].piece
    return BPE(vocab, generate_merges(vocab, scores), unk_token=unknown, fuse_unk=True, byte_fallback=_bytes_too(proto))


def _bytes_too(proto: Any) -> bool:
    return any(piece.type == piece.BYTE for piece in proto.pieces)


def _wanted(proto: Any) -> list[str]:
    """The pieces that are never cut, whatever stands around them."""
    return [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]


def _treat_spaces(backend: Tokenizer, proto: Any) -> None:
    """Spaces become ``▁``, and one is put before the text where the file says so (``add_dummy_prefix``)."""
    from tokenizers import Regex, decoders, normalizers

    spec = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(rf"\A +|[ {_SPACE}]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += _dummy_prefix(_wanted(proto)) if spec.add_dummy_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    joined = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    leading = _MANY if spec.remove_extra_whitespaces else int(spec.add_dummy_prefix)
    backend.decoder = decoders.Sequence([*joined, *([decoders.Strip(" ", leading, 0)] if leading else [])])


def _dummy_prefix(wanted: list[str]) -> list[Any]:
    """A ``▁`` before the text. The library normalises the pieces that are never cut in the same way to look for
    them, and would look for ``▁`` before each: so none is put before a text that is nothing but such a piece.
    """
    from tokenizers import Regex, normalizers

    if not wanted:
        return [normalizers.Prepend(_SPACE)]
    alone = "|".join(re.escape(text) for text in wanted)
    return [normalizers.Prepend(_SPACE), normalizers.Replace(Regex(rf"\A{_SPACE}(?=(?:{alone})\z)"), "")]
