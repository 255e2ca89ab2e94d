"""Ids against the libraries themselves, on hundreds of generated texts; ``.hf`` against the implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from graftwork import load_tokenizer
from graftwork.errors import ModelError
from graftwork.registry import get_registry
from graftwork.tokenizers import VocabularyInfo
from graftwork.tokenizers.ranks import read_bare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MISTRAL_COMMON = ("tekken_240911.json", "mistral_instruct_tokenizer_241114.model.v7")


def differing(tokenizer: Any, texts: list[str]) -> list[str]:
    """The texts for which ``.hf`` has other ids, or gets another text back."""
    backend = tokenizer.hf.backend_tokenizer
    found = []
    for text in texts:
        ids = tokenizer.encode_ordinary(text)
        shown = tokenizer.create_decoder()(ids)
        if backend.encode(text, add_special_tokens=False).ids != ids or tokenizer.hf.decode(ids) != shown:
            found.append(text)
    return found


def test_tiktoken(ranks: Path, toy_family: None, texts: list[str]) -> None:
    from tiktoken import Encoding

    tokenizer = load_tokenizer(ranks)
    assert tokenizer.impl == "tiktoken"
    reference = Encoding(
        "toy", pat_str=r" ?\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+", mergeable_ranks=read_bare(ranks), special_tokens={}
    )
    for text in texts:
        assert tokenizer.encode_ordinary(text) == reference.encode_ordinary(text)
        assert tokenizer.create_decoder()(tokenizer.encode_ordinary(text)) == text
    assert differing(tokenizer, texts) == []


def test_sentencepiece(model: Path, texts: list[str]) -> None:
    from sentencepiece import SentencePieceProcessor

    tokenizer = load_tokenizer(model)
    assert tokenizer.impl == "sentencepiece"
    reference = SentencePieceProcessor(model_file=str(model))
    for text in texts:
        ids = reference.encode(text)
        assert tokenizer.encode_ordinary(text) == ids
        assert tokenizer.decode(ids) == reference.decode(ids)
    assert differing(tokenizer, texts) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False},
        {"user_defined_symbols": ["[REF]", "<h1>"]},
        {"user_defined_symbols": ["[REF]", "\n\n"], "add_dummy_prefix": False},
        {"control_symbols": ["[INST]", "[/INST]"]},
    ],
    ids=str,
)
def test_kinds_of_bpe_models(trained: Callable[..., Path], texts: list[str], settings: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(trained(**settings))
    marked = [f"a {piece}b\n{piece} {piece}" for piece in ("[REF]", "<h1>", "[INST]", "</s>", "<0x0A>")]
    assert differing(tokenizer, texts) == []
    for text in marked:
        same = load_tokenizer(tokenizer.path, impl="hf")
        assert same.encode_ordinary(text) == tokenizer.encode_ordinary(text), text


@pytest.mark.parametrize("kind", ["unigram", "word", "char"])
def test_kinds_that_only_sentencepiece_reads(trained: Callable[..., Path], kind: str) -> None:
    size = {"vocab_size": 300} if kind == "unigram" else {"byte_fallback": False}
    tokenizer = load_tokenizer(trained(model_type=kind, **size))
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert tokenizer.special_tokens.bos_token is not None
    with pytest.raises(ModelError, match=r"is no BPE model: a folder with a tokenizer\.json is needed"):
        _ = tokenizer.hf


def test_a_model_that_the_other_library_reads_otherwise(trained: Callable[..., Path]) -> None:
    """Both normalise by the same rules, but not the same stretches of text."""
    tokenizer = load_tokenizer(trained(normalization_rule_name="nmt_nfkc"))
    with pytest.raises(ModelError, match=r"its ids for 'x³.y' would differ from SentencePiece's; use a folder"):
        _ = tokenizer.hf


def test_real_files(data: Path, texts: list[str]) -> None:
    for name in ("llama2/tokenizer.model", "mistral/tokenizer.model.v1"):
        assert differing(load_tokenizer(data / "tokenizers" / name), texts) == [], name


def test_llama_3(data: Path, texts: list[str]) -> None:
    from tiktoken import Encoding

    tokenizer = load_tokenizer(data / "tokenizers/llama3/tokenizer.model")
    (layout,) = get_registry().families["llama"].rank_layouts
    ranks = read_bare(tokenizer.path)
    reference = Encoding("llama3", pat_str=layout.split_regex, mergeable_ranks=ranks, special_tokens={})
    assert [tokenizer.encode_ordinary(text) for text in texts] == [reference.encode_ordinary(text) for text in texts]
    assert differing(tokenizer, texts) == []
    assert tokenizer.vocab_info == VocabularyInfo(
        size=128_256, unk_idx=None, bos_idx=128_000, eos_idx=128_001, pad_idx=128_004
    )
    assert tokenizer.control_id("<|eot_id|>") == 128_009
    assert load_tokenizer(tokenizer.path, config={"use_eot": True}).vocab_info.eos_idx == 128_009


@pytest.mark.parametrize("name", MISTRAL_COMMON)
def test_mistral_commons_files(name: str, texts: list[str]) -> None:
    from importlib.resources import files

    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    path = str(files("mistral_common") / "data" / name)
    reference: Any = MistralTokenizer.from_file(path).instruct_tokenizer.tokenizer
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_info.size == reference.n_words
    assert (tokenizer.vocab_info.bos_idx, tokenizer.vocab_info.eos_idx) == (reference.bos_id, reference.eos_id)
    assert tokenizer.control_id("[INST]") == reference.get_special_token("[INST]")
    for text in texts:
        assert tokenizer.encode(text) == reference.encode(text, bos=True, eos=True)
    assert differing(tokenizer, texts) == []


def test_the_regex_engines_agree_on_every_kind_of_character(ranks: Path, toy_family: None) -> None:
    """One in 37 code points here; all of them agreed, for the patterns of Llama 3 and of tekken."""
    tokenizer = load_tokenizer(ranks)
    points = [point for point in range(0, 0x110000, 37) if not 0xD800 <= point < 0xE000]
    texts = [f"a{chr(point)}b {chr(point)}{chr(point)} '{chr(point)}x 1{chr(point)}2" for point in points]
    assert differing(tokenizer, texts) == []


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("phi3", "</s>"),
        ("qwen2.5", "<tool_call>"),
        ("gemma", "<eos>"),
        ("llama2", "</s>"),
        ("mistral/mistral_instruct_tokenizer_240323.model.v3", "[INST]"),
    ],
)
def test_no_control_token_of_a_real_file_is_parsed_unasked(data: Path, name: str, known: str) -> None:
    tokenizer: Any = load_tokenizer(data / "tokenizers" / name)
    control = tokenizer.codec.control
    assert known in control
    joined = " ".join(control)
    ids = tokenizer.create_encoder(mode="as_is").ids(joined)
    assert not set(control.values()) & set(ids)
    assert tokenizer.decode(ids) == joined
    parsed = tokenizer.create_encoder(mode="as_is", allow_special=True).ids(joined)
    assert set(control.values()) <= set(parsed)
