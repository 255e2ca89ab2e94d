"""Which tokenizer a folder or file holds, told by content: a ``tokenizer.model`` may be either of two things."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

Content = Literal["tokenizers", "vocabulary", "tekken", "ranks", "sentencepiece", "settings"]

WORDS: dict[Content, str] = {
    "tokenizers": "a tokenizer.json",
    "vocabulary": "a vocabulary with merges",
    "tekken": "a tekken vocabulary",
    "ranks": "tiktoken ranks",
    "sentencepiece": "a SentencePiece model",
    "settings": "a tokenizer_config.json",
}

# In a folder the first kind that is there counts; within a kind, the first pattern.
_PATTERNS = (
    ("tokenizer.json",),
    ("tokenizer.model", "*.model", "*.model.v*", "*.spm", "*.tiktoken"),
    ("tekken*.json",),
    ("vocab.json",),
    ("tokenizer_config.json",),
)
_RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFile:
    """A file, and what is in it."""

    path: Path
    content: Content


def find(path: Path, wanted: Collection[Content] | None = None) -> TokenizerFile | None:
    """The tokenizer at ``path``, a folder or a file; None where there is none (of the ``wanted`` content).

    Raises :class:`~graftwork.errors.ModelError` for a file that is no tokenizer, and for a folder in which several
    files are equally good.
    """
    if path.is_file():
        content = content_of(path)
        if content is None:
            raise ModelError(
                f"tokenizer {path} is not a known kind of file: neither a tokenizer.json nor a tekken.json, "
                "a SentencePiece model or tiktoken ranks"
            )
        return TokenizerFile(path=path, content=content) if wanted is None or content in wanted else None
    for patterns in _PATTERNS:
        for pattern in patterns:
            found = _of_pattern(path, pattern, wanted)
            if len(found) > 1:
                names = " or ".join(str(file.path) for file in found)
                raise ModelError(f"tokenizer in {path}: several files hold one; give one of them: {names}")
            if found:
                return found[0]
    return None


def content_of(file: Path) -> Content | None:
    """What is in ``file``; None where it is no tokenizer. Reads its beginning only."""
    with file.open("rb") as opened:
        head = opened.read(4096)
    if head.lstrip()[:1] == b"{":
        return _json(file, head)
    if head[:1] == b"\n" and len(head) > 2 and (head[2:3] == b"\n" or head[3:4] == b"\n"):  # pieces { piece: ...
        return "sentencepiece"
    return "ranks" if _RANKS.match(head.split(b"\n", 1)[0]) else None


def _json(file: Path, head: bytes) -> Content:
    if file.name == "tokenizer_config.json":
        return "settings"
    if file.name == "vocab.json":
        return "vocabulary"
    if b'"config"' in head and b'"pattern"' in head:
        return "tekken"
    named = b'"version"' in head or b'"added_tokens"' in head or b'"truncation"' in head
    return "tokenizers" if named or file.name == "tokenizer.json" else "vocabulary"


def _of_pattern(folder: Path, pattern: str, wanted: Collection[Content] | None) -> list[TokenizerFile]:
    found = []
    for file in sorted(folder.glob(pattern)):
        content = content_of(file) if file.is_file() else None
        if content is not None and (wanted is None or content in wanted):
            found.append(TokenizerFile(path=file, content=content))
    return found
