"""``Tokenizer``: text to the ids that the model's authors give it, whichever library reads the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from graftwork.specs import ModelFamily
    from graftwork.tokenizers.encoders import Decoder, Encoder
    from graftwork.tokenizers.special import SpecialTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyInfo:
    """The number of tokens, and the ids that have a role; None is a role that the vocabulary does not fill."""

    size: int
    unk_idx: int | None
    bos_idx: int | None
    eos_idx: int | None
    pad_idx: int | None


@dataclass(kw_only=True)
class TokenizerConfig:
    """How tokenizer files are read.

    ``impl`` is the library (``hf``, ``tiktoken``, ``sentencepiece``; None: by the files' content). ``use_eot``
    makes the family's end-of-turn token the EOS. ``split_regex`` replaces the pattern that cuts a text into
    words before the merges of tiktoken ranks apply.
    """

    impl: str | None = None
    use_eot: bool = False
    split_regex: str | None = None


@runtime_checkable
class Tokenizer(Protocol):
    """What every implementation answers to.

    No special token in a text is ever parsed, unless ``allow_special`` says so.
    """

    @property
    def impl(self) -> str:
        """The name of the implementation: ``hf``, ``tiktoken``, ``sentencepiece``."""
        ...

    @property
    def path(self) -> Path:
        """The file or folder that was read."""
        ...

    @property
    def hf(self) -> PreTrainedTokenizerFast:
        """The same tokenizer as transformers has them, with the same ids; built on first use."""
        ...

    @property
    def special_tokens(self) -> SpecialTokens:
        """The special tokens by role, with where each came from."""
        ...

    @property
    def vocab_info(self) -> VocabularyInfo:
        """The size of the vocabulary and the ids of its roles."""
        ...

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
        """An encoder that puts BOS and EOS where ``mode`` says: ``default`` both, ``prompt`` BOS only,
        ``prompt_response`` EOS only, ``as_is`` neither.
        """
        ...

    def create_raw_encoder(self, *, device: Any = None, pin_memory: bool = False) -> Encoder:
        """An encoder that adds nothing."""
        ...

    def create_decoder(self, *, skip_special_tokens: bool = False) -> Decoder:
        """A decoder of ids, given as a list or a tensor."""
        ...

    def encode(self, text: str, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        """The ids of ``text``, with BOS and EOS unless told otherwise."""
        ...

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of ``text`` alone: nothing added, and no special token parsed."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens left out."""
        ...

    def control_id(self, text: str) -> int | None:
        """The id of the special token whose whole text is ``text``; None where there is none."""
        ...


def load_tokenizer(
    path_or_name: str | Path,
    *,
    impl: str | None = None,
    config: TokenizerConfig | Mapping[str, Any] | None = None,
    family: ModelFamily | str | None = None,
) -> Tokenizer:
    """The tokenizer in a file or folder, or of the model that a name leads to.

    Which library reads it is decided by what is in the files, unless ``impl`` (or ``config``) names one.
    ``family`` says whose special tokens a file of bare ranks has, where the file alone does not tell.
    """
    from graftwork.tokenizers.load import load

    return load(path_or_name, impl=impl, config=config, family=family)
