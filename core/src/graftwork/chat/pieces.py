"""Texts to tokens in pieces that are encoded once: the tokens of a word that comes again are remembered.

A tokenizer encodes a text from its beginning to its end; most of it are words that it has seen a thousand times.
Where it can be shown that no token and no step on the way to one reaches over the space between two words, the
tokens of a text are those of its pieces, one after the other. :func:`piece_encoder` looks for that proof:

- Byte pair encoding of the whole text (SentencePiece's: Llama 2, Mistral, Gemma, Phi-3), with each space as "▁": a step
  joins two tokens to one of the vocabulary, so none can reach over a place whose two characters stand side by
  side in no token. These are looked for in the vocabulary.
- Byte pair encoding of what one of the known patterns cuts out (GPT-2, Llama 3, Qwen): each alternative of those
  ends before a space that follows a visible character, and none looks back.

Any other tokenizer has no piece encoder and is used as it is. Shapes: none; offsets are in characters.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from functools import cached_property
from itertools import accumulate, chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_SPACE = "▁"
_PIECES = re.compile(r" *[^ ]+(?:(?<![!-~]) +[^ ]*)*| +")
"""Cuts before a space that follows a visible ASCII character, and nowhere else."""
_CROSSES = re.compile(rf"[!-~]{_SPACE}")
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_KNOWN_PATTERNS = frozenset(
    {
        _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,  # Llama 3
        _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,  # Qwen 2
    }
)
_WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""What Unicode calls white space; Python's own class has four characters more."""
_REMEMBERED = 200_000
"""Pieces; about 100 MB at the most."""
_LONGEST = 40
"""Characters of a piece worth remembering; a longer one hardly comes again."""


class Tokens(Protocol):
    """Token ids, and for each where its characters begin and end in the text."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def starts(self) -> Sequence[int]: ...
    @property
    def ends(self) -> Sequence[int]: ...

    def within(self, start: int, end: int) -> tuple[int, int]:
        """The positions of the tokens that share a character with the characters ``start`` to ``end``; offsets never
        run backwards.
        """
        ...


class Piece(NamedTuple):
    """The tokens of a piece of so many characters, and where they begin and end in it."""

    length: int
    ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


class PieceTokens:
    """The :class:`Tokens` of a text as its pieces have them; places are put together when somebody asks for them."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self.ids = list(chain.from_iterable(map(_ids_of, pieces)))

    @cached_property
    def starts(self) -> list[int]:
        return [base + place for base, piece in self._placed() for place in piece.starts]

    @cached_property
    def ends(self) -> list[int]:
        return [base + place for base, piece in self._placed() for place in piece.ends]

    def within(self, start: int, end: int) -> tuple[int, int]:
        """As in :class:`Tokens`, without the places of every token."""
        bases, counts = self._bases, self._counts
        first = bisect_right(bases, start) - 1
        if first == len(self._pieces):
            return counts[-1], self._before(end)
        return counts[first] + bisect_right(self._pieces[first].ends, start - bases[first]), self._before(end)

    def _before(self, end: int) -> int:
        """How many tokens begin before the character ``end``."""
        last = min(bisect_left(self._bases, end), len(self._pieces)) - 1
        if last < 0:
            return 0
        return self._counts[last] + bisect_left(self._pieces[last].starts, end - self._bases[last])

    def _placed(self) -> Iterator[tuple[int, Piece]]:
        return zip(self._bases, self._pieces, strict=False)

    @cached_property
    def _bases(self) -> list[int]:
        return list(accumulate(map(_length_of, self._pieces), initial=0))

    @cached_property
    def _counts(self) -> list[int]:
        return list(accumulate(map(len, map(_ids_of, self._pieces)), initial=0))


_length_of = itemgetter(0)
_ids_of = itemgetter(1)


class PieceEncoder:
    """Encodes texts as the tokenizer would that it was made from."""

    def __init__(self, head: Any, inner: Any, added: dict[str, int], cuts: re.Pattern[str]) -> None:
        self._heads = _Remembered(head)
        self._inner = _Remembered(inner)
        self._added = {text: Piece(len(text), (index,), (0,), (len(text),)) for text, index in added.items()}
        self._cuts = cuts

    def encode(self, text: str) -> PieceTokens:
        """The tokens of ``text``, added tokens parsed in it, nothing added."""
        pieces: list[Piece] = []
        place = 0
        for match in self._cuts.finditer(text):
            self._between(text[place : match.start()], pieces)
            place = match.end()
            pieces.append(self._added.get(match[0]) or self._swallowing(match[0]))
        self._between(text[place:], pieces)
        return PieceTokens(pieces)

    def _swallowing(self, text: str) -> Piece:
        """A token that reaches to the end of the white space after it."""
        return Piece(len(text), self._added[text.rstrip(_WHITE)].ids, (0,), (len(text),))

    def _between(self, text: str, pieces: list[Piece]) -> None:
        if not text:
            return
        found = _PIECES.findall(text)
        pieces.append(self._heads[found[0]])
        inner = self._inner
        pieces += [inner[piece] for piece in found[1:]]


class _Remembered(dict[str, Piece]):
    """Texts of pieces to their tokens."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self._backend = backend

    def __missing__(self, text: str) -> Piece:
        encoding = self._backend.encode(text, add_special_tokens=False)
        offsets = encoding.offsets
        starts, ends = tuple(start for start, _ in offsets), tuple(end for _, end in offsets)
        piece = Piece(len(text), tuple(encoding.ids), starts, ends)
        if len(text) <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[text] = piece
        return piece


def piece_encoder(backend: Any) -> PieceEncoder | None:
    """A faster encoder with the same tokens, or None where it cannot be shown that there is one.

    ``backend`` is a ``tokenizers.Tokenizer``, whose model is shared.
    """
    added: dict[int, Any] = backend.get_added_tokens_decoder()
    steps = {name: _plan_of(getattr(backend, name)) for name in ("normalizer", "pre_tokenizer", "post_processor")}
    if not _adds_plainly(added.values()) or not (_joins_no_words(backend, steps) or _cuts_words(backend, steps)):
        return None
    inner = None if steps["normalizer"] == _PREPEND_AND_REPLACE else backend.normalizer
    if steps["normalizer"] == _PREPEND_AND_REPLACE:
        from tokenizers.normalizers import Replace

        inner = Replace(" ", _SPACE)
    return PieceEncoder(
        _without_added(backend, backend.normalizer),
        _without_added(backend, inner),
        {token.content: index for index, token in added.items()},
        _cuts_of(added.values()),
    )


def _plan_of(step: Any) -> Any:
    """A part of a tokenizer as it is written to ``tokenizer.json``."""
    return None if step is None else json.loads(step.__getstate__())


def _without_added(backend: Any, normalizer: Any) -> Any:
    from tokenizers import Tokenizer

    bare = Tokenizer(backend.model)
    for name, step in (("normalizer", normalizer), ("pre_tokenizer", backend.pre_tokenizer)):
        if step is not None:
            setattr(bare, name, step)
    if backend.post_processor is not None:  # it moves offsets
        bare.post_processor = backend.post_processor
    return bare


def _cuts_of(added: Collection[Any]) -> re.Pattern[str]:
    """Finds added tokens, the longest where several begin, with the white space that some of them swallow."""
    longest_first = sorted(added, key=lambda token: len(token.content), reverse=True)
    texts = [re.escape(token.content) + (f"[{_WHITE}]*" if token.rstrip else "") for token in longest_first]
    return re.compile("|".join(texts) or r"(?!)")


def _adds_plainly(added: Collection[Any]) -> bool:
    """Whether the added tokens are found in the text as it stands."""
    odd = any(token.normalized or token.lstrip or token.single_word for token in added)
    return not odd and all(token.content.strip() == token.content != "" for token in added)


def _joins_no_words(backend: Any, steps: Mapping[str, Any]) -> bool:
    """Whether it is byte pair encoding of the whole text, in which no token has "▁" after a visible character."""
    if not _is_plain_bpe(backend.model) or backend.model.ignore_merges or steps["pre_tokenizer"] is not None:
        return False
    if steps["normalizer"] not in (_REPLACE, _PREPEND_AND_REPLACE) or backend.token_to_id(_SPACE) is None:
        return False
    # "<0x0A>" stands for a byte, a part of a character, which may come before a space as well.
    return not any(
        _CROSSES.search(token) or ("<0x" in token and len(token) != len("<0x0A>"))
        for token in backend.get_vocab(with_added_tokens=False)
    )


def _is_plain_bpe(model: Any) -> bool:
    names = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    return type(model).__name__ == "BPE" and not any(getattr(model, name) for name in names)


_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND_AND_REPLACE = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, _REPLACE]}


def _cuts_words(backend: Any, steps: Mapping[str, Any]) -> bool:
    """Whether a known pattern cuts the text before bytes are paired. Composing (NFC) never joins a space to what
    stands before it.
    """
    if not _is_plain_bpe(backend.model) or steps["normalizer"] not in (None, {"type": "NFC"}):
        return False
    cutter = steps["pre_tokenizer"] or {}
    cutters = cutter.get("pretokenizers", [cutter])
    if any(step.get("add_prefix_space") for step in [*cutters, steps["post_processor"] or {}]):
        return False
    kinds = [step.get("type") for step in cutters]
    if kinds == ["ByteLevel"]:
        return bool(cutters[0]["use_regex"])
    if kinds != ["Split", "ByteLevel"] or cutters[1]["use_regex"]:
        return False
    keeps_all = (cutters[0]["behavior"], cutters[0]["invert"]) in (("Isolated", False), ("Removed", True))
    return keeps_all and cutters[0]["pattern"].get("Regex") in _KNOWN_PATTERNS
