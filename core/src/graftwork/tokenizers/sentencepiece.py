"""A SentencePiece file as a fast tokenizer with SentencePiece's own ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

_SPACE = "▁"
# Leading, double, trailing and only spaces, line ends, and what has to fall back to bytes.
_PROBES = ("Hello world", " Hello", "  two  spaces ", " ", "\n\n a\tb", "ünï 🦙 漢字", "x=1.5;\n    return y")


def convert(model: Path, *, add_bos: bool = True) -> Tokenizer:
    """The tokenizer in the file ``model``; ``add_bos`` puts its bos token before a text, as Llama and Mistral do.

    transformers 5 builds such a file's merges without the scores and splits at spaces, so that texts with leading
    or double spaces get other ids. Here the result is compared with SentencePiece on probe texts. Raises
    :class:`~graftwork.errors.ModelError` where they differ, and for files that are not of the BPE kind.
    """
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    proto = ModelProto.FromString(model.read_bytes())
    if proto.trainer_spec.model_type != 2:
        raise ModelError(f"{model} is no BPE model: a folder with a tokenizer.json is needed (model.tokenizer_name)")
    backend = _backend(proto)
    reference = SentencePieceProcessor(model_file=str(model))
    for text in _PROBES:
        if backend.encode(text, add_special_tokens=False).ids != reference.encode(text):
            raise ModelError(
                f"{model} cannot be read as a fast tokenizer: its ids for {text!r} would differ from SentencePiece's; "
                "use a folder with a tokenizer.json (set model.tokenizer_name)"
            )
    if add_bos and reference.bos_id() >= 0:
        _begin_with(backend, reference.id_to_piece(reference.bos_id()), reference.bos_id())
    return backend


def named_tokens(model: Path) -> dict[str, str]:
    """The texts of ``bos_token``, ``eos_token`` and ``unk_token``, those that the file has."""
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(model))
    ids = {"bos_token": reference.bos_id(), "eos_token": reference.eos_id(), "unk_token": reference.unk_id()}
    return {name: reference.id_to_piece(index) for name, index in ids.items() if index >= 0}


def _backend(proto: Any) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE
    from transformers.tokenization_utils_base import generate_merges

    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    unknown = proto.pieces[proto.trainer_spec.unk_id].piece
    bytes_too = any(piece.type == piece.BYTE for piece in proto.pieces)
    merges = generate_merges(vocab, scores)
    backend = Tokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_too))
    _treat_spaces(backend, proto.normalizer_spec)
    special = [piece.piece for piece in proto.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    wanted = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
    backend.add_tokens([AddedToken(text, normalized=True, special=False) for text in wanted])
    return backend


def _treat_spaces(backend: Tokenizer, spec: Any) -> None:
    """Spaces become ``▁``, and one is put before the text where the file says so (``add_dummy_prefix``)."""
    from tokenizers import decoders, normalizers

    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    steps += [normalizers.Prepend(_SPACE)] if spec.add_dummy_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    joined = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*joined, *([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else [])])


def _begin_with(backend: Tokenizer, token: str, index: int) -> None:
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, index)]
    )
