"""``Codec``: what each library contributes to a tokenizer; everything else is the same for all."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from graftwork.builders.extras import importable
from graftwork.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast


class Codec(Protocol):
    """A vocabulary with the library that reads it."""

    @property
    def impl(self) -> str:
        """The name of the implementation."""
        ...

    @property
    def size(self) -> int:
        """The number of tokens."""
        ...

    @property
    def control(self) -> Mapping[str, int]:
        """The special tokens: text to id. None of them is parsed in a text unless asked for."""
        ...

    @property
    def roles(self) -> Mapping[str, str | None]:
        """``bos_token``, ``eos_token``, ... to the text that the files give."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The template that the files bring."""
        ...

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of ``text``; special tokens in it are parsed only where ``allow_special``."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ``ids``; special tokens come out as their text, or are left out."""
        ...

    def fast(self) -> PreTrainedTokenizerFast:
        """The same vocabulary for transformers."""
        ...


def pieces(text: str, control: Mapping[str, int]) -> Iterator[tuple[str, int | None]]:
    """``text`` cut at its special tokens: each part with its id, None for what lies between. Longer tokens win."""
    if not control:
        yield text, None
        return
    for part in _pattern(tuple(control)).split(text):
        if part:
            yield part, control.get(part)


def runs(ids: Sequence[int], control: Mapping[int, str]) -> Iterator[tuple[list[int], str | None]]:
    """``ids`` cut at the special tokens: ordinary ids together, each special one with its text."""
    ordinary: list[int] = []
    for index in ids:
        if index not in control:
            ordinary.append(index)
            continue
        if ordinary:
            yield ordinary, None
            ordinary = []
        yield [index], control[index]
    if ordinary:
        yield ordinary, None


def well_formed(text: str) -> str:
    """``text`` with halves of characters (lone surrogates) replaced by U+FFFD, as tiktoken does it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def require(path: Path, *, extra: str, modules: Mapping[str, str]) -> None:
    """Raises :class:`MissingExtraError` where one of ``modules`` (package to module) is not installed."""
    missing = [name for name, module in modules.items() if not importable(module)]
    if missing:
        raise MissingExtraError(
            f"{path} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f'pip install "graftwork[{extra}]", or use a folder with a tokenizer.json'
        )


@lru_cache(maxsize=32)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) + ")")


def known_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of :func:`graftwork.load_tokenizer` and, apart from them, those of ``from_pretrained``."""
    own = {name: options.get(name) for name in ("use_eot", "split_regex", "family")}
    return own, {name: value for name, value in options.items() if name not in own}
