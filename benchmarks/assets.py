"""What all contenders get: one model with one set of weights, one tokenizer, one file of conversations.

The model is the 42-million-parameter Llama of the README's table: 8 layers, 512 wide, vocabulary 32,000, tied.
Conversations and tokenizer come from ``--data`` and ``--tokenizer``, or from the folder that
GRAFTWORK_TEST_DATA names, else from the standard library's docstrings.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_LENGTH = 1024
"""Tokens of the longest conversation; TRL's default, so that nobody cuts anything."""

MODEL = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Assets:
    """Folders and files under the benchmark's working folder, and what a token sees of its conversation on
    average: the sum of the squared lengths over the sum of the lengths.
    """

    model: Path
    data: Path
    mean_context: float


def prepare(
    folder: Path, data: Path | None, tokenizer: Path | None, conversations: int, vocab_size: int = MODEL["vocab_size"]
) -> Assets:
    """Makes the assets, anew each time."""
    shared = os.environ.get("GRAFTWORK_TEST_DATA")
    if shared:
        data = data or Path(shared) / "datasets" / "instruct" / "alpaca_en_demo.0-499.json"
        tokenizer = tokenizer or Path(shared) / "tokenizers" / "llama2"
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(data) if data else docstring_rows()
    chat_tokenizer = load_tokenizer(tokenizer, rows)
    save_model(folder / "model", chat_tokenizer, vocab_size)
    lengths = write_rows(folder / "conversations.jsonl", rows, chat_tokenizer, conversations)
    mean_context = sum(length * length for length in lengths) / sum(lengths)
    return Assets(folder / "model", folder / "conversations.jsonl", mean_context)


def read_rows(path: Path) -> list[list[dict[str, str]]]:
    """Conversations in any shape that graftwork reads."""
    from graftwork.config import DatasetParams
    from graftwork.data.conversations import to_conversation
    from graftwork.data.readers import OpenRequest, open_chat

    source = open_chat(OpenRequest(dataset=DatasetParams(dataset_name="text_sft", dataset_path=str(path)), params=None))
    return [to_conversation(row).to_dict()["messages"] for row in source.rows()]


def docstring_rows() -> list[list[dict[str, str]]]:
    """Questions about the standard library, from its public docstrings."""
    import importlib
    import inspect

    rows = []
    for name in ("textwrap", "pathlib", "json", "csv", "statistics", "argparse", "logging", "subprocess", "difflib"):
        for function, member in inspect.getmembers(importlib.import_module(name)):
            text = inspect.getdoc(member)
            if callable(member) and text and len(text) > 80 and not function.startswith("_"):
                question = f"What does `{name}.{function}` do?"
                rows.append([{"role": "user", "content": question}, {"role": "assistant", "content": text}])
    return rows


def load_tokenizer(path: Path | None, rows: list[list[dict[str, str]]]) -> Any:
    """A Llama tokenizer where there is one, else a byte-level BPE trained on the conversations."""
    from graftwork import ModelParams, build_chat_template, build_tokenizer

    if path is not None:
        tokenizer = build_tokenizer(ModelParams(model_name=str(path), chat_template="llama2"))
    else:
        tokenizer = train_tokenizer(message["content"] for row in rows for message in row)
        tokenizer.chat_template = build_chat_template("default")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def train_tokenizer(texts: Any) -> Any:
    """At most 32,000 tokens, the size of the model's vocabulary."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=MODEL["vocab_size"], special_tokens=["<s>", "</s>", "<unk>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_model(folder: Path, tokenizer: Any, vocab_size: int = MODEL["vocab_size"]) -> None:
    """Fresh weights, the same for everybody."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**MODEL, "vocab_size": vocab_size})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, rows: list[list[dict[str, str]]], tokenizer: Any, count: int) -> list[int]:
    """The first ``count`` conversations that fit, and their lengths in tokens."""
    lengths = [len(tokenizer.apply_chat_template(row)["input_ids"]) for row in rows]
    fitting = [index for index, length in enumerate(lengths) if length <= MAX_LENGTH]
    chosen = [fitting[number % len(fitting)] for number in range(count)]
    path.write_text("".join(json.dumps({"messages": rows[index]}) + "\n" for index in chosen), encoding="utf-8")
    return [lengths[index] for index in chosen]
