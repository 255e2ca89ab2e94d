"""Prompts to token ids: texts as they are, conversations through the model's template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerFast

    from graftwork.inference.engine import LoadedModel, Prompt
    from graftwork.messages import Message

# Enough ids for the text after them to decode as it would in the whole text.
CONTEXT_IDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """``text`` is the prompt as the tokenizer got it; ``context`` are the ids whose text the completion goes on
    from, none where it starts a text of its own.
    """

    text: str
    ids: list[int]
    context: list[int]


def encode_prompt(prompt: Prompt, loaded: LoadedModel) -> EncodedPrompt:
    """The ids to generate from. Raises :class:`ModelError` for a conversation and no template."""
    if isinstance(prompt, str):
        ids = encode_text(prompt, loaded.tokenizer)
        return EncodedPrompt(text=prompt, ids=ids, context=ids[-CONTEXT_IDS:])
    return encode_conversation(prompt, loaded)


def encode_text(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids of ``text`` with what the tokenizer puts in front, and nothing behind: a tokenizer that closes
    every text with EOS would have the model start anew. A BOS that the text brings is not doubled.
    """
    bare = list(tokenizer.encode(text, add_special_tokens=False))
    full = list(tokenizer.encode(text, add_special_tokens=True))
    front = _before(full, bare)
    while front and bare and front[-1] == bare[0] == tokenizer.bos_token_id:
        front = front[:-1]
    ids = [*front, *bare]
    if not ids:
        return _start_of_text(tokenizer)
    return ids


def encode_conversation(
    messages: Sequence[Message] | Sequence[Mapping[str, Any]], loaded: LoadedModel
) -> EncodedPrompt:
    """The conversation up to where the assistant's answer begins; control tokens in a message are plain text."""
    from graftwork import chat

    if loaded.chat_template is None:
        raise ModelError(without_template(loaded))
    text, ids = chat.encode_prompt(
        messages, template=loaded.chat_template, tokenizer=loaded.tokenizer, **loaded.template_variables
    )
    return EncodedPrompt(text=text, ids=ids, context=[])


def without_template(loaded: LoadedModel) -> str:
    """What to say where a conversation is asked of a model that brings no template."""
    name = loaded.family.chat_template or "NAME"
    return (
        f"{loaded.path or 'the model'} has no chat template saved with it, so it was hardly trained to answer: "
        f"prompt it with a text to go on from (graft generate), or give --chat-template {name}"
    )


def _before(full: list[int], bare: list[int]) -> list[int]:
    """What stands in ``full`` in front of ``bare``."""
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def _start_of_text(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What an empty prompt is: the beginning of a text."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return [token_id]
    raise ModelError("the prompt is empty, and the tokenizer has neither BOS nor EOS to start from: write a prompt")
