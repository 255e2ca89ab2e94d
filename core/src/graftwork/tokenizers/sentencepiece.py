"""SentencePiece models, read and encoded by sentencepiece: Llama 2, Mistral, Gemma, Phi-3."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError, UsageError
from graftwork.tokenizers import beside, codec, files
from graftwork.tokenizers.loaded import LoadedTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from graftwork.tokenizers.beside import Beside

CONTENTS: tuple[files.Content, ...] = ("sentencepiece",)


def load(path: Path, options: Mapping[str, Any]) -> LoadedTokenizer:
    """The tokenizer in the SentencePiece model at ``path``, a folder or a file."""
    own, kwargs = codec.known_options(options)
    file = files.find(path, CONTENTS)
    if file is None:
        raise ModelError(f"there is no SentencePiece model at {path}; leave impl out to have others")
    if own["split_regex"] is not None:
        raise UsageError(f"{file.path} is a SentencePiece model, which no pattern splits: leave split_regex out")
    codec.require(file.path, extra="sentencepiece", modules={"sentencepiece": "sentencepiece"})
    return LoadedTokenizer(
        path=path,
        codec=SentencePieceCodec(file.path, beside.read(path), kwargs),
        family=own["family"],
        use_eot=bool(own["use_eot"]),
    )


class SentencePieceCodec:
    """A ``SentencePieceProcessor`` with the tokens that its folder adds to it."""

    impl = "sentencepiece"

    def __init__(self, model: Path, settings: Beside, kwargs: Mapping[str, Any]) -> None:
        self.model = model
        self.processor = _processor(model)
        pieces = self.processor.get_piece_size()
        own = [index for index in range(pieces) if self.processor.is_control(index)]
        own += [self.processor.unk_id()] if self.processor.unk_id() >= 0 else []
        self.added = {text: index for text, index in settings.added.items() if index >= pieces}
        self.control = {self.processor.id_to_piece(index): index for index in sorted(own)} | self.added
        self.roles = {**self._roles(), **settings.roles}
        self.chat_template = settings.chat_template
        self.size = max([pieces, *(index + 1 for index in self.added.values())])
        self._texts = {index: text for text, index in self.control.items()}
        self._beside, self._kwargs = settings, kwargs

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of ``text``; what lies between special tokens is encoded by itself."""
        text = codec.well_formed(text)
        if not allow_special:
            return list(self.processor.encode(text))
        ids: list[int] = []
        for part, index in codec.pieces(text, self.control):
            ids += self.processor.encode(part) if index is None else [index]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``. The space that stands before every text is left out at the beginning only."""
        if skip_special:
            return str(self.processor.decode([index for index in ids if index not in self._texts]))
        parts: list[str] = []
        for run, text in codec.runs(ids, self._texts):
            parts.append(text if text is not None else self._decode(run, first=not parts))
        return "".join(parts)

    def fast(self) -> PreTrainedTokenizerFast:
        """The same model for transformers. Raises :class:`ModelError` where it cannot be had with equal ids."""
        from graftwork.tokenizers.sentencepiece_fast import convert

        codec.require(self.model, extra="sentencepiece", modules={"protobuf": "google.protobuf"})
        backend = convert(self.model, add_bos=self._beside.add_bos, added=self.added)
        return beside.fast(backend, self._beside, self.roles, self._kwargs)

    def _roles(self) -> dict[str, str | None]:
        ids = {f"{role}_token": getattr(self.processor, f"{role}_id")() for role in ("bos", "eos", "pad", "unk")}
        return {role: self.processor.id_to_piece(index) for role, index in ids.items() if index >= 0}

    def _decode(self, ids: list[int], *, first: bool) -> str:
        """``sentencepiece`` drops the space of a text's first piece; a known one in front keeps it."""
        if first:
            return str(self.processor.decode(ids))
        anchor = self.processor.encode("a")
        return str(self.processor.decode(anchor + ids)).removeprefix(self._anchored)

    @cached_property
    def _anchored(self) -> str:
        return str(self.processor.decode(self.processor.encode("a")))


def _processor(model: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(model))
    except RuntimeError as error:
        raise ModelError(f"{model} is no SentencePiece model that can be read: {error}") from error
