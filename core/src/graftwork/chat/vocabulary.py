"""A tokenizer as conversations need it: which texts are control tokens, and text that none of them is parsed in."""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left, bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from graftwork.chat.pieces import PieceEncoder, piece_encoder
from graftwork.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graftwork.chat.pieces import Tokens


class Parts(NamedTuple):
    """What control tokens can begin and end with, the whole ones left out, and how long the longest is."""

    beginnings: frozenset[str]
    endings: frozenset[str]
    longest: int


class ListedTokens(NamedTuple):
    """:class:`~graftwork.chat.pieces.Tokens` with a place for each."""

    ids: list[int]
    starts: Sequence[int]
    ends: Sequence[int]

    def within(self, start: int, end: int) -> tuple[int, int]:
        return bisect_right(self.ends, start), bisect_left(self.starts, end)


def hf_tokenizer(tokenizer: Any) -> Any:
    """The transformers tokenizer of ``tokenizer``, which may be one already, or have one as ``hf``; None stays None."""
    if tokenizer is None or hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer
    return getattr(tokenizer, "hf", tokenizer)


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of ``tokenizer``; made once, and again when tokens were added to it."""
    hf = hf_tokenizer(tokenizer)
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"{type(tokenizer).__name__} is not a fast tokenizer: chats need one with character offsets")
    size = backend.get_vocab_size()
    known = _KNOWN.get(hf)
    if known is None or known.size != size:
        known = _KNOWN[hf] = Vocabulary(backend, frozenset(hf.all_special_tokens), size)
    return known


class Vocabulary:
    """The control tokens of a tokenizer, and its encoders. A control token is one that was added as special, or
    that has a role (BOS, EOS, ...).
    """

    def __init__(self, backend: Any, named: frozenset[str], size: int) -> None:
        self.backend = backend
        self.size = size
        added = backend.get_added_tokens_decoder().items()
        self.control: dict[str, int] = {
            token.content: index for index, token in added if token.special or token.content in named
        }
        self.control_ids = frozenset(self.control.values())
        longest_first = sorted(self.control, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.expected: dict[Any, list[str] | None] = {}
        self._pieces: PieceEncoder | None = None

    def encode(self, text: str) -> Tokens:
        """The ids of ``text`` as transformers gives them: nothing added, padded or truncated."""
        try:
            return _tokens(self.backend, text) if self._pieces is None else self._pieces.encode(text)
        except TypeError:
            raise DataError(half_a_character(text)) from None

    def remember_pieces(self) -> None:
        """Encodes from now on with what comes again in memory, where that gives the same: for many texts."""
        self._pieces = self._pieces or piece_encoder(self.backend)

    def encode_plain(self, text: str, *, within: bool) -> ListedTokens:
        """The ids of ``text`` with no control token parsed in it; ``within``: as what follows a control token."""
        front = len(self._stop) if within else 0
        ids, starts, ends = _tokens(self._plain, self._stop + text if within else text)
        first = 1 if within else 0
        return ListedTokens(
            [self._renamed.get(index, index) for index in ids[first:]],
            [start - front for start in starts[first:]],
            [end - front for end in ends[first:]],
        )

    @cached_property
    def parts(self) -> Parts:
        return Parts(
            beginnings=frozenset(token[:end] for token in self.control for end in range(1, len(token))),
            endings=frozenset(token[start:] for token in self.control for start in range(1, len(token))),
            longest=max(map(len, self.control), default=0),
        )

    @cached_property
    def _stop(self) -> str:
        """The text of a token that only :attr:`_plain` has, and that nobody else knows of: ids after it are those
        in the middle of a text, where some tokenizers write no space in front.
        """
        return f"\ufdd0{secrets.token_hex(8)}\ufdd1"

    @cached_property
    def _plain(self) -> Any:
        """The tokenizer without its control tokens. It shares the model, which is too large to copy in passing."""
        from tokenizers import AddedToken, Tokenizer

        plain = Tokenizer(self.backend.model)
        plain.normalizer, plain.pre_tokenizer = self.backend.normalizer, self.backend.pre_tokenizer
        plain.add_tokens(list(self._others.values()))
        plain.add_tokens([AddedToken(self._stop, normalized=False)])
        return plain

    @cached_property
    def _others(self) -> dict[int, Any]:
        """The added tokens that are no control tokens."""
        added = self.backend.get_added_tokens_decoder()
        return {index: token for index, token in added.items() if token.content not in self.control}

    @cached_property
    def _renamed(self) -> dict[int, int]:
        """The ids of those tokens, which :attr:`_plain` numbers anew."""
        return {self._plain.token_to_id(token.content): index for index, token in self._others.items()}


def half_a_character(text: str) -> str:
    """What to say of a text that a tokenizer does not take for one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"the text has {text[error.start]!r} behind {text[max(0, error.start - 20) : error.start]!r}: half of a "
            "surrogate pair, which is no character; mend the text, or leave the row out"
        )
    return f"the tokenizer refuses the text {text[:40]!r}; mend it, or leave the row out"


_KNOWN: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()


def piece_encoders(tokenizer: Any) -> tuple[Callable[[str], list[int]], Callable[[str], int | None]]:
    """The encoder of plain text and the finder of control ids: the tokenizer's own, where it brings them."""
    if hasattr(tokenizer, "encode_ordinary") and hasattr(tokenizer, "control_id"):
        return tokenizer.encode_ordinary, tokenizer.control_id
    vocabulary = vocabulary_of(tokenizer)
    return lambda text: vocabulary.encode_plain(text, within=False).ids, vocabulary.control.get


def _tokens(backend: Any, text: str) -> ListedTokens:
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    encoding = backend.encode(text, add_special_tokens=False)
    if not encoding.ids:
        return ListedTokens([], [], [])
    starts, ends = zip(*encoding.offsets, strict=True)
    return ListedTokens(encoding.ids, starts, ends)
