"""The quickstart's tokenizer, its measures, its configurations and its folders."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from graftwork import ModelParams, build_tokenizer, encode_chat, render_chat
from graftwork.errors import MissingExtraError, RunError
from graftwork.quickstart import steps
from graftwork.quickstart.configurations import Layout, read_config, write_configurations
from graftwork.quickstart.corpus import Corpus, write_corpus
from graftwork.quickstart.docstrings import Question
from graftwork.quickstart.folder import fresh_folder
from graftwork.quickstart.measure import own_entropy, predicted_tokens, unigram_entropy
from graftwork.quickstart.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_tokenizer
from graftwork.quickstart.topics import Document
from graftwork.registry import get_registry, reset_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\n   def fox():\n      return 'dog'\n" * 3,
    "One.\n\n\nTwo.\n\n\n" * 30,
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "tokenizer"
    save_tokenizer(train_tokenizer(TEXTS, 300, 128), folder)
    return folder


def small_corpus() -> Corpus:
    documents = [Document(name, f"About {name}. {TEXTS[0]}") for name in "abc"]
    questions = [Question(f"{name}.do", f"Does {name}.") for name in "abc"]
    return Corpus(
        documents=documents[:1],
        held_out_documents=documents[1:],
        questions=questions[:1],
        held_out_questions=questions[1:],
    )


# Tokenizer


@pytest.mark.parametrize("text", [*TEXTS, "", "  two  spaces \t\n", "naïve — 数学 🦊", "<|not_special|>\x00"])
def test_every_text_comes_back(tokenizer_folder: Path, text: str) -> None:
    tokenizer = build_tokenizer(ModelParams(model_name=str(tokenizer_folder)))
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_the_tokenizer_is_one_of_llama_3s_kind(tokenizer_folder: Path) -> None:
    tokenizer = build_tokenizer(ModelParams(model_name=str(tokenizer_folder), chat_template="llama3-instruct"))
    assert len(tokenizer) == 300
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id == 0
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (1, 2, 128)
    turns = [{"role": "user", "content": "fox?"}, {"role": "assistant", "content": "dog."}]
    trained = [token for token, learned in zip(*encode_chat(turns, tokenizer=tokenizer), strict=True) if learned]
    assert tokenizer.decode(trained) == "dog.<|eot_id|>"


def test_a_model_is_asked_with_the_tokens_it_was_trained_on(tokenizer_folder: Path) -> None:
    tokenizer = build_tokenizer(ModelParams(model_name=str(tokenizer_folder), chat_template="llama3-instruct"))
    question = [{"role": "user", "content": "What does `fox` do?"}]
    for answer in ("dog.", "'dog'", "The fox"):
        ids, trained = encode_chat([*question, {"role": "assistant", "content": answer}], tokenizer=tokenizer)
        prompt = render_chat(question, template=None, tokenizer=tokenizer, add_generation_prompt=True)
        asked = tokenizer(prompt, add_special_tokens=False).input_ids
        assert ids[: trained.index(True)] == asked


def test_the_same_texts_give_the_same_tokenizer() -> None:
    first, second = (train_tokenizer(TEXTS, 300, 128).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


# Measures


def test_unigram_entropy_by_hand() -> None:
    # Counts a: 3, b: 1, c: 0, each plus one, over 4 + 3.
    expected = -(math.log(4 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3
    assert unigram_entropy([0, 0, 0, 1], [0, 1, 2], 3) == pytest.approx(expected)
    assert own_entropy([0, 1, 2, 3]) == pytest.approx(math.log(4))
    assert own_entropy([5, 5]) == 0


def test_unigrams_are_measured_on_the_tokens_that_the_loss_is(tokenizer_folder: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_corpus(small_corpus(), layout.corpus)
    write_configurations(layout, seed=0, steps=8)
    tokenizer = build_tokenizer(ModelParams(model_name=str(tokenizer_folder)))
    layout.tokenizer.symlink_to(tokenizer_folder)
    split = read_config(layout, layout.pretrained).data.validation
    found = predicted_tokens(split, tokenizer, 128, frozenset({1}))
    assert 0 not in found  # BOS is never predicted
    assert found.count(1) == 2  # the end of each document is


# Configurations


def test_the_environment_does_not_change_a_configuration(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    write_corpus(small_corpus(), layout.corpus)
    write_configurations(layout, seed=7, steps=40)
    layout.tokenizer.symlink_to(tokenizer_folder)
    monkeypatch.setenv("GRAFTWORK_TRAINING__MAX_STEPS", "3")
    config = read_config(layout, layout.pretrained)
    assert (config.training.max_steps, config.training.seed) == (40, 7)
    text = layout.config(layout.pretrained).read_text()
    assert f"graft train -c {tmp_path}/pretrain.yaml training.output_dir={tmp_path}/pretrain-again" in text


# Folders


def test_nothing_is_written_over(tmp_path: Path) -> None:
    parent = tmp_path / "deep" / "quickstart"
    first, before = fresh_folder(parent)
    (first / "mine.txt").write_text("kept")
    second, previous = fresh_folder(parent)
    assert (first, before) == (parent / "run-1", None)
    assert (second, previous) == (parent / "run-2", first)
    assert (first / "mine.txt").read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--output-dir .*file.*: no folder can be made there \(.*\); give another one"):
        fresh_folder(tmp_path / "file")


# Plugins


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GRAFTWORK_PLUGINS", "llama")
    reset_registry()
    yield
    monkeypatch.undo()
    reset_registry()


def test_a_missing_plugin_is_named(only: None) -> None:
    if "llama3_2_1b" not in get_registry().presets:
        pytest.skip("graftwork-llama is not installed")
    with pytest.raises(MissingExtraError, match=r"needs graftwork-native, .*pip install graftwork-native"):
        steps.require_plugins()
