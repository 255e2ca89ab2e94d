"""A preference row to a pair of conversations, in the shapes that public sets have, and the pair to one sample."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graftwork.data.conversations import (
    QUESTIONS,
    asked_in,
    earlier,
    from_turns,
    given,
    require_field,
    said,
    system_of,
    tools_of,
)
from graftwork.data.lengths import TooLongError
from graftwork.data.misplaced import misplaced
from graftwork.data.samples import Sample
from graftwork.data.shapes import ANSWERS
from graftwork.errors import DataError
from graftwork.messages import Conversation, Message, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from graftwork.config import DatasetSplitParams
    from graftwork.data.readers import Row

PROMPTS = ("messages", "conversations", "conversation", "prompt", "question", "instruction", "query", "input")
SHAPES = (
    "messages (or conversations) with chosen and rejected; prompt (question, query or input) with chosen and rejected; "
    "instruction, input, chosen and rejected; or chosen and rejected as whole conversations"
)
OPENERS = (Role.SYSTEM, Role.USER)
"""Who speaks first in a whole conversation; an answer begins with the assistant."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with two answers: messages that follow on it, the last of which is the assistant's.

    ``tools`` are those that the conversation may call.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: list[dict[str, Any]] | None = None

    @property
    def conversations(self) -> tuple[Conversation, Conversation]:
        """The whole conversation with the chosen and with the rejected answer."""
        return (
            Conversation(messages=[*self.prompt, *self.chosen]),
            Conversation(messages=[*self.prompt, *self.rejected]),
        )


# Rows to pairs


def to_pair(row: Row, messages_field: str | None = None) -> Pair:
    """The row as a pair. Raises :class:`DataError` with the row's place where it is none.

    The prompt stands beside the answers (Oumi's two shapes, OpenAI's, ShareGPT's, Alpaca's, TRL's, Orca's), or they are
    whole conversations that begin alike (UltraFeedback, TRL's implicit prompt, Anthropic's HH). ``messages_field`` is
    the name of the field with the prompt; None is the first of :data:`PROMPTS` that is there.
    """
    if isinstance(inside := row.data.get("input"), Mapping):  # OpenAI: messages and tools one level down
        row = replace(row, data={**row.data, "input": None, **inside})
    require_field(row.data, messages_field, row.where)
    fields = next((names for names in ANSWERS if all(given(row.data, name) for name in names)), None)
    if fields is None:
        why = misplaced(row.data, "preference") or f"no preference row; expected one of: {SHAPES}"
        raise DataError(f"{row.where}: {listed(row)} are {why}")
    first, second = (row.data[field] for field in fields)
    prompt = prompt_of(row, messages_field)
    if not prompt and isinstance(first, str) and isinstance(second, str):
        prompt, chosen, rejected = split_texts(first, second, row.where)
    else:
        chosen, rejected = (answer_of(row.data[field], row.where, field) for field in fields)
    if all(is_whole(prompt, answer) for answer in (chosen, rejected)):
        opening = prompt[:1]
        prompt, chosen, rejected = split_conversations(chosen, rejected)
        if opening and prompt and opening[0].role is Role.SYSTEM is not prompt[0].role:
            prompt = (*opening, *prompt)
    for field, answer in zip(fields, (chosen, rejected), strict=True):
        require_answer(answer, row.where, field)
    if not prompt:
        raise DataError(
            f"{row.where}: the answers have no prompt: {listed(row)}, and {fields[0]} and {fields[1]} begin "
            f"differently; expected one of: {SHAPES}"
        )
    if prompt[0].role is not Role.SYSTEM:
        prompt = (*system_of(row.data, row.where), *prompt)
    return Pair(prompt, chosen, rejected, tools_of(row))


def listed(row: Row) -> str:
    """The row's fields, for an error."""
    return f"fields {', '.join(row.data) or 'none'}"


def prompt_of(row: Row, messages_field: str | None) -> tuple[Message, ...]:
    """The messages of the prompt that stands in the row; none where the answers are whole conversations."""
    names = PROMPTS if messages_field is None else (messages_field, *PROMPTS)
    field = next((name for name in names if row.data.get(name)), None)
    if field is None:
        return ()
    value = row.data[field]
    if field in QUESTIONS and isinstance(value, str):
        return tuple(asked_in(row.data, field, row.where))
    messages = (said(Role.USER, value),) if isinstance(value, str) else turns_of(value, row.where, field)
    return (*earlier(row.data.get("history"), row.where), *messages)


def answer_of(value: Any, where: str, field: str) -> tuple[Message, ...]:
    """An answer as messages: a text, a message, a list of messages, or Oumi's ``{"messages": [...]}``."""
    if isinstance(value, str):
        return (said(Role.ASSISTANT, value),)
    single = isinstance(value, Mapping) and "messages" not in value
    return turns_of([value] if single else value, where, field)


def turns_of(value: Any, where: str, field: str) -> tuple[Message, ...]:
    """A list of turns, which must not be empty, or Oumi's object around one."""
    if not isinstance(value, list | Mapping) or not value:
        raise DataError(f"{where}: {field} is {value!r:.60}, neither a text nor a list of messages")
    messages = tuple(from_turns(value, where, field))
    if not messages:
        raise DataError(f"{where}: {field} has no messages; give it some, or remove the row")
    return messages


def is_whole(prompt: tuple[Message, ...], answer: tuple[Message, ...]) -> bool:
    """Whether an answer is a whole conversation: it begins as one, and with the prompt where there is one."""
    begins = answer[0].role in OPENERS
    return begins and (not prompt or any(message in answer[:2] for message in prompt[:2]))


def split_conversations(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Two whole conversations: the messages that they share, short of the last of each, and how each goes on."""
    shortest = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def split_texts(
    chosen: str, rejected: str, where: str
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Two whole texts: Anthropic's ``Human:`` and ``Assistant:``, else what they share is the prompt, as in TRL."""
    if all(SPEAKER.search(text) for text in (chosen, rejected)):
        return split_conversations(spoken(chosen, where, "chosen"), spoken(rejected, where, "rejected"))
    shortest = min(len(chosen), len(rejected))
    prompt = chosen[: next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)].removesuffix(" ")
    asked = (said(Role.USER, prompt),) if prompt.strip() else ()
    first, second = ((said(Role.ASSISTANT, text.removeprefix(prompt)),) for text in (chosen, rejected))
    return asked, first, second


SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
SPEAKERS = {"Human": Role.USER, "Assistant": Role.ASSISTANT}


def spoken(text: str, where: str, field: str) -> tuple[Message, ...]:
    """The turns of a text in which each begins with its speaker."""
    before, *parts = SPEAKER.split(text)
    if before.strip():
        raise DataError(f"{where}: {field} has a text before its first speaker: {before!r:.60}; remove it")
    return tuple(said(SPEAKERS[speaker], words.strip()) for speaker, words in zip(parts[::2], parts[1::2], strict=True))


def require_answer(answer: Sequence[Message], where: str, field: str) -> None:
    """The last word is the assistant's."""
    if not answer or answer[-1].role is not Role.ASSISTANT:
        role = answer[-1].role if answer else "nobody"
        raise DataError(
            f"{where}: {field} ends with a turn of {role}, not of the assistant; remove the row, or mend it"
        )
    if answer[-1].weight == 0:
        raise DataError(f"{where}: the answer in {field} has weight 0, and a pair is about its answers; remove either")


# Pairs to samples


@dataclass(frozen=True, slots=True, kw_only=True)
class PairEncoder:
    """Pairs through the tokenizer's chat template; the tokens of the assistant's last turn are trained, in each.

    Both conversations are encoded whole. The prompt of the sample is the tokens that they share, at most up to the
    first that is trained: nothing is ever encoded in pieces. Each answer has to end in one of ``stop_ids``.
    """

    tokenizer: PreTrainedTokenizerFast
    stop_ids: frozenset[int]
    variables: Mapping[str, Any]
    special_tokens_in_content: str = "error"
    messages_field: str | None = None

    def __call__(self, row: Row) -> Sample:
        return self._sample(row, None)

    def shorten(self, row: Row, max_length: int) -> Sample:
        """The pair with the text of each answer that is too long cut at the limit, never in what closes its turn.

        Raises :class:`TooLongError` where the prompt leaves no room for one of them.
        """
        return self._sample(row, max_length)

    def _sample(self, row: Row, max_length: int | None) -> Sample:
        pair = to_pair(row, self.messages_field)
        try:
            chosen, rejected = (self._encode(one, pair.tools, max_length) for one in pair.conversations)
        except TooLongError:
            raise
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
        return joined(chosen, rejected, row.where)

    def _encode(
        self, conversation: Conversation, tools: list[dict[str, Any]] | None, max_length: int | None
    ) -> Encoded:
        """The conversation up to its last trained token; with ``max_length`` in no more tokens than that."""
        from graftwork.chat import check_turns, encode_conversation
        from graftwork.chat.encode import write_chat
        from graftwork.data.truncate import cut_place

        given = {"special_tokens_in_content": self.special_tokens_in_content, **self.variables, "tools": tools}
        encoded = encode_conversation(
            conversation, tokenizer=self.tokenizer, train_target="final_assistant_turn", **given
        )
        encoded = check_turns(encoded, self.stop_ids, self.tokenizer)
        ids, trained = np.asarray(encoded.input_ids, np.int32), np.asarray(encoded.trained, np.bool_)
        if max_length is not None and len(until_last(ids, trained)[0]) > max_length:
            written = write_chat(conversation, tokenizer=self.tokenizer, **given)
            stop = cut_place(written, encoded, conversation.messages[-1].text, max_length)
            ids, trained = ids[:stop], trained[:stop]
        return ids, trained


def pair_encoder(
    tokenizer: PreTrainedTokenizerFast,
    split: DatasetSplitParams,
    stop_ids: frozenset[int],
    variables: Mapping[str, Any],
    special_tokens_in_content: str = "error",
    messages_field: str | None = None,
) -> PairEncoder:
    """How rows of ``split`` become pairs. Of its ``train_target`` only ``final_assistant_turn`` has a meaning here."""
    return PairEncoder(
        tokenizer=tokenizer,
        stop_ids=stop_ids,
        variables=variables,
        special_tokens_in_content=special_tokens_in_content,
        messages_field=messages_field,
    )


Encoded = tuple["NDArray[np.int32]", "NDArray[np.bool_]"]


def joined(chosen: Encoded, rejected: Encoded, where: str) -> Sample:
    """Two encoded conversations as prompt, chosen and rejected answer. What follows a last trained token is left out:
    no label depends on it.
    """
    (ids, trained), (other_ids, other_trained) = (until_last(*one) for one in (chosen, rejected))
    limit = min(int(trained.argmax()), int(other_trained.argmax()))
    differing = np.flatnonzero(ids[:limit] != other_ids[:limit])
    shared = int(differing[0]) if len(differing) else limit
    if shared == 0:
        raise DataError(
            f"{where}: the two answers have no token of a prompt before them; give the row a prompt, or use a chat "
            "template that begins a conversation with a token of its own"
        )
    return Sample(
        np.concatenate([ids, other_ids[shared:]]),
        np.concatenate([trained, other_trained[shared:]]),
        where,
        (shared, len(ids) - shared, len(other_ids) - shared),
    )


def until_last(ids: NDArray[np.int32], trained: NDArray[np.bool_]) -> Encoded:
    """Up to the last trained token."""
    end = int(np.flatnonzero(trained)[-1]) + 1
    return ids[:end], trained[:end]
