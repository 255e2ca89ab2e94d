"""``LoadedTokenizer``: a codec, the family's knowledge and the modes, which together are a ``Tokenizer``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from graftwork.errors import UsageError
from graftwork.tokenizers.encoders import Decoder, Encoder, sides
from graftwork.tokenizers.special import special_tokens_of
from graftwork.tokenizers.tokenizer import VocabularyInfo

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from graftwork.specs import ModelFamily
    from graftwork.tokenizers.codec import Codec
    from graftwork.tokenizers.special import SpecialToken, SpecialTokens

END_OF_TURN_TEXTS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")
"""Tokens that end a turn, for vocabularies whose family is not known."""


@dataclass(kw_only=True, repr=False)
class LoadedTokenizer:
    """A tokenizer as every implementation gives it (the protocol :class:`graftwork.Tokenizer`)."""

    path: Path
    codec: Codec
    family: ModelFamily | None = None
    use_eot: bool = False

    def __post_init__(self) -> None:
        self.roles = {role: text for role, text in self.codec.roles.items() if text is not None}
        if self.use_eot:
            self.roles["eos_token"] = self._end_of_turn()

    def __repr__(self) -> str:
        return f"<tokenizer of {self.path}: {self.impl}, {self.vocab_info.size:,} tokens>"

    @property
    def impl(self) -> str:
        """The name of the implementation."""
        return self.codec.impl

    @property
    def chat_template(self) -> str | None:
        """The template that the files bring."""
        return self.codec.chat_template

    @cached_property
    def hf(self) -> PreTrainedTokenizerFast:
        """The same tokenizer as transformers has them."""
        tokenizer = self.codec.fast()
        tokenizer.name_or_path = str(self.path)
        if self.use_eot:
            tokenizer.eos_token = self.roles["eos_token"]
        return tokenizer

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The special tokens by role."""
        return special_tokens_of(self, self.family)

    @property
    def vocab_info(self) -> VocabularyInfo:
        """The size of the vocabulary and the ids of its roles."""
        tokens = self.special_tokens
        return VocabularyInfo(
            size=self.codec.size,
            unk_idx=_id(tokens.unk_token),
            bos_idx=_id(tokens.bos_token),
            eos_idx=_id(tokens.eos_token),
            pad_idx=_id(tokens.pad_token),
        )

    def create_encoder(
        self,
        *,
        task: str | None = None,
        lang: str | None = None,
        mode: str | None = None,
        device: Any = None,
        pin_memory: bool = False,
        allow_special: bool = False,
    ) -> Encoder:
        """An encoder that puts BOS and EOS where ``mode`` says. Raises :class:`UsageError` for what is not known."""
        for name, value in (("task", task), ("lang", lang)):
            if value is not None:
                raise UsageError(f"create_encoder: {name} {value!r}: language models have none; leave {name} out")
        with_bos, with_eos = sides(mode)
        return Encoder(
            codec=self.codec,
            bos=_id(self.special_tokens.bos_token) if with_bos else None,
            eos=_id(self.special_tokens.eos_token) if with_eos else None,
            device=device,
            pin_memory=pin_memory,
            allow_special=allow_special,
        )

    def create_raw_encoder(self, *, device: Any = None, pin_memory: bool = False) -> Encoder:
        """An encoder that adds nothing."""
        return self.create_encoder(mode="as_is", device=device, pin_memory=pin_memory)

    def create_decoder(self, *, skip_special_tokens: bool = False) -> Decoder:
        """A decoder of ids, given as a list or a tensor."""
        return Decoder(codec=self.codec, skip_special_tokens=skip_special_tokens)

    def encode(self, text: str, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        """The ids of ``text``, with BOS and EOS unless told otherwise."""
        bos, eos = _id(self.special_tokens.bos_token), _id(self.special_tokens.eos_token)
        return Encoder(codec=self.codec, bos=bos if add_bos else None, eos=eos if add_eos else None).ids(text)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of ``text`` alone."""
        return self.codec.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens left out."""
        return self.codec.decode(ids, skip_special=True)

    def control_id(self, text: str) -> int | None:
        """The id of the special token whose whole text is ``text``."""
        return self.codec.control.get(text)

    @property
    def _eos_token(self) -> str | None:
        """The text of EOS, under the name that fairseq2's users read."""
        token = self.special_tokens.eos_token
        return None if token is None else token.text

    @property
    def _model(self) -> SimpleNamespace:
        """``_model._tok`` is :attr:`hf`: the path by which fairseq2's users reach it."""
        return SimpleNamespace(_tok=self.hf)

    def _end_of_turn(self) -> str:
        family = self.family.stop_tokens if self.family is not None else ()
        known = [text for text in family or END_OF_TURN_TEXTS if text in self.codec.control]
        if not known:
            raise UsageError(
                f"use_eot: the vocabulary in {self.path} has no end-of-turn token "
                f"(looked for {', '.join(family or END_OF_TURN_TEXTS)}); leave use_eot out"
            )
        return known[0]


def _id(token: SpecialToken | None) -> int | None:
    return None if token is None else token.id
