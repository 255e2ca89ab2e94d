"""Ids to text as they come: equal to decoding at once, in whole characters, without stop strings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from graftwork.inference.text import Detokenizer, StopStrings

TEXTS = [
    "Plain words, and  two spaces.",
    " leading space",
    "naïve café — “quotes”",
    "你好，世界。",
    "family 👩‍👩‍👧‍👦 and flag 🇨🇭 done",
    "line\n\n\tindented\r\n",
    "नमस्ते दुनिया",
]


def byte_level() -> PreTrainedTokenizerFast:
    """One token a byte, as GPT-2 writes them: every character outside ASCII takes several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words with a mark for the space in front, bytes for the rest, and the first space dropped: as Llama 2."""
    words = ["▁Once", "▁upon", "▁a", "▁time", "▁", "a", "e", "."]
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocab |= {word: 257 + at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def pieces(tokenizer: PreTrainedTokenizerFast, ids: list[int], context: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context or [])
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("build", [byte_level, sentencepiece_like])
def test_pieces_join_to_what_transformers_decodes(build, text):
    tokenizer = build()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("build", [byte_level, sentencepiece_like])
def test_a_character_comes_whole_or_not_at_all(build):
    tokenizer = build()
    made = pieces(tokenizer, tokenizer.encode("a你👋e", add_special_tokens=False))
    assert [piece for piece in made if piece] == ["a", "你", "👋", "e"]


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    tokenizer = byte_level()
    ids = tokenizer.encode("ok 👋", add_special_tokens=False)[:-1]
    made = pieces(tokenizer, ids)
    assert "\ufffd" not in "".join(made[:-1])
    assert made[-1] == "\ufffd"


def test_the_space_between_prompt_and_completion_is_kept():
    tokenizer = sentencepiece_like()
    prompt = [tokenizer.convert_tokens_to_ids(word) for word in ("▁Once", "▁upon")]
    answer = [tokenizer.convert_tokens_to_ids(word) for word in ("▁a", "▁time", ".")]
    assert "".join(pieces(tokenizer, answer, prompt)) == " a time."
    assert "".join(pieces(tokenizer, answer)) == "a time."


def real_tokenizers() -> list[str]:
    return ["phi3", "gemma"]


@pytest.mark.parametrize("name", real_tokenizers())
def test_pieces_join_with_real_tokenizers(name):
    data = os.environ.get("GRAFTWORK_TEST_DATA")
    if not data:
        pytest.skip("needs the real tokenizers in GRAFTWORK_TEST_DATA")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(data) / "tokenizers" / name / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        (["END"], "one ENDtwo", "one "),
        (["END"], "one EN", "one EN"),
        (["\n\n", "User:"], "hello\nthere\n\nUser: x", "hello\nthere"),
        (["aab"], "aaab", "a"),
        (["b", "ab"], "xab", "x"),
        ([], "free", "free"),
        ([""], "free", "free"),
    ],
)
def test_stop_strings_are_never_shown_however_the_text_is_cut(stops, text, shown):
    for size in (1, 2, 3, len(text)):
        rules = StopStrings(stops)
        out = [rules.push(text[at : at + size]) for at in range(0, len(text), size)]
        assert "".join([*out, rules.finish()]) == shown
        assert rules.found == (shown != text)
