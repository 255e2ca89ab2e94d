"""Texts encoded in remembered pieces: the tokens and places that the tokenizer itself gives."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from graftwork.chat.pieces import piece_encoder
from graftwork.chat.vocabulary import vocabulary_of

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA", "/nowhere"))
KINDS = ("gemma", "llama2", "llama3", "phi3", "qwen2.5", "mistral/tokenizer.model.v1")
ODD = [
    *" \n\t\r\u3000\u0301\u00e9\u6f22\U0001f600<>|'\"sS.,aZ0\x85\x1c\xa0\u2028\u2581",
    *("  ", "   ", "\n\n", "\n ", " \n", "'s", "'LL", " word", " the", "123456", "x \u0301", "<0x0A>"),
]


def odd_texts(backend: Any, count: int) -> list[str]:
    """White space of every kind, marks, letters, other writing systems and added tokens in any order."""
    generator = random.Random(1)
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    some = [*ODD, *added[:4], *added[-8:]]
    return ["".join(generator.choice(some) for _ in range(generator.randrange(30))) for _ in range(count)]


def check(backend: Any, texts: list[str]) -> None:
    """Ids, places, and what is asked of places, against ``tokenizers`` itself."""
    encoder = piece_encoder(backend)
    assert encoder is not None
    generator = random.Random(2)
    for text in texts:
        expected = backend.encode(text, add_special_tokens=False)
        found = encoder.encode(text)
        assert found.ids == expected.ids, text
        start = generator.randrange(len(text) + 1)
        end = generator.randrange(start, len(text) + 1)
        first = sum(token_end <= start for _, token_end in expected.offsets)
        assert found.within(start, end) == (first, sum(begin < end for begin, _ in expected.offsets)), text
        assert list(zip(found.starts, found.ends, strict=True)) == expected.offsets, text


@pytest.mark.skipif(not DATA.is_dir(), reason="real files: set GRAFTWORK_TEST_DATA")
@pytest.mark.parametrize("kind", KINDS)
def test_real_tokenizers_are_equalled(kind: str) -> None:
    from graftwork import ModelParams, build_tokenizer

    backend = build_tokenizer(ModelParams(model_name=str(DATA / "tokenizers" / kind))).backend_tokenizer
    story = (DATA / "datasets" / "text" / "tinystories.train.txt").read_text("utf-8")[:200_000].split("\n\n")
    check(backend, odd_texts(backend, 1500) + story)


def test_bytes_cut_by_gpt2s_pattern(tokenizer: Any) -> None:
    backend = tokenizer.backend_tokenizer
    check(backend, [*odd_texts(backend, 500), "", " ", "<s>", " a  b "])


def test_the_vocabulary_encodes_with_them_once_asked(tokenizer: Any) -> None:
    vocabulary = vocabulary_of(tokenizer)
    text = "<|user|> Hello there, how  are you?</s>"
    plain = vocabulary.encode(text)
    vocabulary.remember_pieces()
    remembered = vocabulary.encode(text)
    assert type(remembered) is not type(plain)
    assert (remembered.ids, [*remembered.starts], [*remembered.ends]) == (plain.ids, [*plain.starts], [*plain.ends])
    assert remembered.within(0, 12) == plain.within(0, 12)


def sentencepiece_like(vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> Any:
    from tokenizers import Tokenizer, models, normalizers

    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    return backend


def test_a_token_over_two_words_is_the_end_of_it() -> None:
    letters = {letter: index for index, letter in enumerate("ab\u2581")}
    assert piece_encoder(sentencepiece_like(letters, [])) is not None
    joined = sentencepiece_like({**letters, "a\u2581": 3}, [("a", "\u2581")])
    assert joined.encode("a a").tokens == ["a\u2581", "a"]
    assert piece_encoder(joined) is None


@pytest.mark.parametrize("change", ["dropout", "pattern", "prefix", "normalized", "lowercase", "model"])
def test_what_cannot_be_shown_is_not_done(change: str) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[], dropout=0.1 if change == "dropout" else None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=change == "prefix")
    if change == "pattern":
        split = pre_tokenizers.Split(Regex(r"\S+\s+\S+"), "isolated")
        levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, levels])
    elif change == "normalized":
        backend.add_tokens([AddedToken("a b", normalized=True)])
    elif change == "lowercase":
        backend.normalizer = normalizers.Lowercase()
    elif change == "model":
        backend.model = models.WordLevel({"a": 0}, unk_token="a")
    assert piece_encoder(backend) is None
