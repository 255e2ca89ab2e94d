"""Small real tokenizers, trained or written here, and the texts to try them on."""

from __future__ import annotations

import base64
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = (
    "the quick brown fox jumps over the lazy dog",
    "hello world again and again",
    "x = 1.5; return y",
    "naïve café",
)
PIECES = (
    *("hello", " World", "don't", "I'LL ", "x=1.5;", "1234567", "½", "é", "日本語", "한국어", "שלום", "مرحبا", "ไทย"),
    *(
        "🦙",
        "👩‍👩‍👧",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x07",
        "\x1b[0m",
        "\t",
        "\n",
        "\r\n",
        "  ",
        "    ",
        "\u3000",
        "\xa0",
    ),
    *(
        "▁",
        "## ",
        "->",
        "://",
        "word" * 40,
        "\ufffd",
        "İ",
        "ß",
        "ſ",
        "ﬁ",
        "①",
        "１２",
        "e\u0301",
        "aaaa",
        "====",
        "def f():",
    ),
)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Texts of known pieces, of random code points, and of one thing over and over."""
    return generated(400)


def generated(count: int) -> list[str]:
    source = random.Random(20)
    blocks = [(0x20, 0x7F), (0, 0x300), (0x300, 0x3000), (0x3000, 0xD800), (0xE000, 0x20000)]

    def character() -> str:
        return chr(source.randrange(*source.choice(blocks)))

    texts = ["", " ", "  ", "\n", "\n\n ", " a", "a ", "a  b"]
    for index in range(count - len(texts)):
        if index % 3 == 0:
            texts.append("".join(source.choice(PIECES) + source.choice(["", " ", "  "]) for _ in range(8)))
        elif index % 3 == 1:
            texts.append("".join(character() for _ in range(source.randint(1, 30))))
        else:
            texts.append(source.choice(PIECES) * source.randint(1, 30) + source.choice(PIECES))
    return texts


@pytest.fixture(scope="session")
def data() -> Path:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the real tokenizers are not here")
    return Path(root)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``trained(model_type="unigram")`` is a SentencePiece model of a few words, trained with these settings."""
    return lambda **settings: train(tmp_path_factory.mktemp("model"), **settings)


def train(folder: Path, **settings: Any) -> Path:
    from sentencepiece import SentencePieceTrainer

    defaults = {
        "model_type": "bpe",
        "vocab_size": 320,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 3,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tokenizer.model").open("wb") as model:
        SentencePieceTrainer.train(
            sentence_iterator=iter(WORDS * 10), model_writer=model, hard_vocab_limit=False, **{**defaults, **settings}
        )
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE model as Llama 2's: a space before the text, bytes for what it does not know."""
    return train(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """260 ranks: every byte, then three merges and a run of spaces."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"  "]
    file = tmp_path_factory.mktemp("ranks") / "tokenizer.model"
    file.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return file


@pytest.fixture
def toy_family(install_plugin: Any) -> None:
    """The one installed family says what the file ``ranks`` leaves unsaid."""
    install_plugin(
        """
        from graftwork import hookimpl
        from graftwork.specs import ModelFamily, RankLayout

        LAYOUT = RankLayout(
            ranks=260,
            split_regex=r" ?\\p{L}+|\\p{N}{1,3}|\\s+|[^\\s\\p{L}\\p{N}]+",
            special_tokens=("<|begin|>", "<|end|>", "<|turn|>"),
        )

        @hookimpl
        def graftwork_model_families():
            roles = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
            return [
                ModelFamily(
                    name="toy",
                    model_types=("toy",),
                    rank_layouts=(LAYOUT,),
                    special_tokens=roles,
                    stop_tokens=("<|turn|>", "<|end|>"),
                )
            ]
        """
    )
