"""Small tokenizers with the special tokens of real chat formats, and the real templates where they are at hand."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SPECIAL = [
    "<s>",
    "</s>",
    "<unk>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
]
CORPUS = [
    "Hello there, how are you today?",
    "I am fine, thank you. 2 + 2 = 4!",
    "user assistant system\n\n[INST] [/INST] <<SYS>> USER: ASSISTANT: SYSTEM:",
]


@cache
def small_tokenizer(bos: str | None, eos: str | None) -> Any:
    """A byte-level BPE of some 400 tokens; every special token is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


@pytest.fixture
def tokenizer() -> Any:
    made = small_tokenizer("<s>", "</s>")
    made.chat_template = None
    return made


@pytest.fixture
def llama3_tokenizer() -> Any:
    made = small_tokenizer("<|begin_of_text|>", "<|end_of_text|>")
    made.chat_template = None
    return made


@pytest.fixture(scope="session")
def data() -> Path:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the real templates and vectors are not here")
    return Path(root)


@pytest.fixture(scope="session")
def real(data: Path) -> Any:
    """A function that loads a real tokenizer by its place, once."""
    from graftwork import load_tokenizer

    return cache(lambda file: load_tokenizer(data / "tokenizers" / file))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


CONVERSATIONS = {
    "one turn": [user("Hello there"), assistant("I am fine, thank you.")],
    "two turns": [user("2 + 2"), assistant("4!"), user("And 2 + 3?\nNow"), assistant("  5, of course ")],
    "emoji": [user("smile 🙂"), assistant("here: 🙂"), user("漢字?"), assistant("ünï 漢")],
    "system": [{"role": "system", "content": "Be brief."}, user("Hello"), assistant("Hi"), user("?"), assistant("!")],
}


@pytest.fixture(params=list(CONVERSATIONS))
def conversation(request: pytest.FixtureRequest) -> list[dict[str, str]]:
    return CONVERSATIONS[request.param]
