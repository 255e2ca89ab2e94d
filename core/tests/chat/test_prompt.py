"""A model must be asked with the tokens that it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from graftwork.chat import prompt_mismatch
from graftwork.config import DatasetSplitParams
from graftwork.data.readers import Row
from graftwork.data.samples import chat_encoder

if TYPE_CHECKING:
    import pytest

MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "there"}]
HEADERS = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}"
)
LLAMA3_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tokenizer_with(pre_tokenizer: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE that has met two line breaks at the end of a text, and so has a token for them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|user|>", "<|assistant|>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["line\n\n"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", chat_template=HEADERS)


def gpt2() -> PreTrainedTokenizerFast:
    return tokenizer_with(pre_tokenizers.ByteLevel(add_prefix_space=False))


def llama3() -> PreTrainedTokenizerFast:
    words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    return tokenizer_with(
        pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    )


def test_gpt2_words_split_two_line_breaks_in_front_of_an_answer_only() -> None:
    """The reference is transformers: its generation prompt is no prefix of its conversation."""
    tokenizer = gpt2()
    asked = tokenizer.apply_chat_template(MESSAGES[:1], add_generation_prompt=True)["input_ids"]
    trained = tokenizer.apply_chat_template(MESSAGES)["input_ids"]
    assert trained[: len(asked)] != asked

    mismatch = prompt_mismatch(MESSAGES, tokenizer=tokenizer)
    assert mismatch is not None
    assert f"the tokens {asked[-1]} {tokenizer.decode(asked[-1:])!r} when" in mismatch
    assert "does not join the prompt's last characters" in mismatch


def test_llama3_words_keep_them_together() -> None:
    tokenizer = llama3()
    asked = tokenizer.apply_chat_template(MESSAGES[:1], add_generation_prompt=True)["input_ids"]
    trained = tokenizer.apply_chat_template(MESSAGES)["input_ids"]
    assert trained[: len(asked)] == asked
    assert prompt_mismatch(MESSAGES, tokenizer=tokenizer) is None


def test_training_says_so_once_with_the_row(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = gpt2()
    encode = chat_encoder(
        tokenizer, DatasetSplitParams(), "messages", frozenset({tokenizer.eos_token_id}), variables={}
    )
    for number in range(3):
        encode(Row({"messages": MESSAGES}, f"rows.jsonl:{number + 1}", (0, number)))
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == ["rows.jsonl:1"]
