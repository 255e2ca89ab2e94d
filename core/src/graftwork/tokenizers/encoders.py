"""Encoders and decoders: callables over a codec, with BOS and EOS as a mode says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from graftwork.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

MODES = {
    "default": (True, True),
    "prompt": (True, False),
    "prompt_response": (False, True),
    "as_is": (False, False),
}
"""Mode to whether BOS comes before the text and EOS after it."""


class Coding(Protocol):
    """What an encoder and a decoder need of a tokenizer's library."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of ``text``; special tokens in it are parsed only where ``allow_special``."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``; special tokens come out as their text, or are left out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Text to a 1-D int64 tensor (T,); ``ids`` gives the same as a list."""

    codec: Coding
    bos: int | None = None
    eos: int | None = None
    device: Any = None
    pin_memory: bool = False
    allow_special: bool = False

    def __call__(self, text: str) -> Tensor:
        import torch

        ids = torch.tensor(self.ids(text), dtype=torch.int64, pin_memory=self.pin_memory)
        return ids if self.device is None else ids.to(self.device, non_blocking=self.pin_memory)

    def ids(self, text: str) -> list[int]:
        """BOS, the ids of ``text``, EOS; one that the text itself brings is not doubled."""
        ids = self.codec.encode(text, allow_special=self.allow_special)
        if self.bos is not None and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]
        if self.eos is not None and ids[-1:] != [self.eos]:
            ids = [*ids, self.eos]
        return ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Ids, as a list or a 1-D tensor, to text."""

    codec: Coding
    skip_special_tokens: bool = False

    def __call__(self, ids: Iterable[int] | Tensor) -> str:
        listed = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        return self.codec.decode(listed, skip_special=self.skip_special_tokens)


def sides(mode: str | None) -> tuple[bool, bool]:
    """Whether ``mode`` puts BOS before and EOS after a text. Raises :class:`UsageError` for one that is not known."""
    name = "default" if mode is None else mode.casefold()
    if name not in MODES:
        raise UsageError(f"create_encoder: mode {mode!r} is not known; {did_you_mean(name, MODES)}")
    return MODES[name]
