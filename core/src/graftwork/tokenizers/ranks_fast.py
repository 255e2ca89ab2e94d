"""Ranked bytes as a fast tokenizer: the same merges in the same order, after the same split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenizers import Tokenizer

    from graftwork.tokenizers.ranks import Ranks


def convert(ranks: Ranks, *, add_bos: bool = True) -> Tokenizer:
    """``ranks`` for the library tokenizers; ``add_bos`` puts the bos token before a text where there is one.

    tiktoken first looks a word up whole (``ignore_merges``), then merges the pair whose result has the lowest rank:
    so each way to split a token into two others is a merge, in the order of the ranks. The two regex engines agree
    on every code point (a test samples them).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names = {token: _spelt(token) for token in ranks.ids}
    vocab = {names[token]: index for token, index in ranks.ids.items()}
    if not _follow(ranks):
        vocab |= ranks.special  # the library gives an added token an id of its choice unless the model has one
    backend = Tokenizer(models.BPE(vocab, list(_merges(ranks.ids, names)), ignore_merges=True))
    # tiktoken encodes what the pattern matches, and nothing else
    split = pre_tokenizers.Split(_pattern(ranks), "removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    by_id = sorted(ranks.special, key=ranks.special.__getitem__)
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in by_id])
    bos = ranks.roles.get("bos_token")
    if add_bos and bos is not None:
        begin_with(backend, bos, ranks.special[bos])
    return backend


def begin_with(backend: Tokenizer, token: str, index: int) -> None:
    """Puts ``token`` before each text that is encoded with its special tokens."""
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, index)]
    )


def _pattern(ranks: Ranks) -> Any:
    from tokenizers import Regex

    try:
        return Regex(ranks.split_regex)
    except Exception as error:  # the Rust library raises Exception itself
        raise UsageError(
            f"{ranks.path}: the pattern {ranks.split_regex!r} cannot be had for a fast tokenizer: {error}; write it "
            "otherwise (split_regex)"
        ) from error


def _merges(ids: Mapping[bytes, int], names: Mapping[bytes, str]) -> Iterator[tuple[str, str]]:
    for token in sorted(ids, key=ids.__getitem__):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        for left, right in sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]])):
            yield names[left], names[right]


def _follow(ranks: Ranks) -> bool:
    """Whether the special tokens have the ids right after the others."""
    first = len(ranks.ids)
    return sorted(ranks.special.values()) == list(range(first, first + len(ranks.special)))


def _spelt(token: bytes) -> str:
    return "".join(map(_LETTERS.__getitem__, token))


def _letters() -> dict[int, str]:
    """A printable character a byte, as the library's ByteLevel writes them: itself, or one from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(0x100 + index) for index, byte in enumerate(hidden)}


_LETTERS: Mapping[int, Any] = _letters()
