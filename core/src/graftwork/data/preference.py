"""A preference row to a pair of conversations, in the shapes that public sets have, and the pair to one sample."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from graftwork.data.conversations import text_of, tools_of
from graftwork.data.lengths import TooLongError
from graftwork.data.samples import Sample
from graftwork.errors import DataError
from graftwork.messages import Conversation, Message, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from graftwork.config import DatasetSplitParams
    from graftwork.data.readers import Row

ANSWERS = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response_j", "response_k"))
PROMPTS = ("messages", "conversations", "conversation", "prompt", "question", "instruction")
SHAPES = (
    "messages (or conversations) with chosen and rejected; prompt (or question) with chosen and rejected; "
    "instruction, input, chosen and rejected; or chosen and rejected as whole conversations"
)
SHAREGPT = {"human": "user", "gpt": "assistant", "observation": "tool"}
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


def to_pair(row: Row) -> Pair:
    """The row as a pair. Raises :class:`DataError` with the row's place where it is none.

    The prompt stands beside the answers (Oumi's two shapes, ShareGPT's, Alpaca's, TRL's, Orca's), or the answers are
    whole conversations that begin alike (UltraFeedback, TRL's implicit prompt, Anthropic's HH).
    """
    fields = next((names for names in ANSWERS if all(name in row.data for name in names)), None)
    if fields is None:
        raise DataError(f"{row.where}: {listed(row)} are no preference row; expected one of: {SHAPES}")
    prompt = prompt_of(row)
    if prompt is None and all(isinstance(row.data[field], str) for field in fields):
        prompt, chosen, rejected = split_texts(*(row.data[field] for field in fields), row.where)
    else:
        chosen, rejected = (answer_of(row.data[field], row.where, field) for field in fields)
    if all(answer[0].role in OPENERS for answer in (chosen, rejected)) and is_whole(prompt, chosen, rejected):
        prompt, chosen, rejected = split_conversations(chosen, rejected)
    for field, answer in zip(fields, (chosen, rejected), strict=True):
        require_answer(answer, row.where, field)
    if not prompt:
        raise DataError(
            f"{row.where}: the answers have no prompt: {listed(row)}, and {fields[0]} and {fields[1]} begin "
            f"differently; expected one of: {SHAPES}"
        )
    return Pair(prompt, chosen, rejected, tools_of(row))


def listed(row: Row) -> str:
    """The row's fields, for an error."""
    return f"fields {', '.join(row.data) or 'none'}"


def prompt_of(row: Row) -> tuple[Message, ...] | None:
    """The messages of the prompt that stands in the row, with a ``system`` text before it; None where none does."""
    field = next((name for name in PROMPTS if row.data.get(name)), None)
    if field is None:
        return None
    value = row.data[field]
    if field == "instruction" and row.data.get("input"):
        value = f"{text_of(row.data, field, row.where)}\n\n{text_of(row.data, 'input', row.where)}"
    messages = (said(Role.USER, value),) if isinstance(value, str) else messages_of(value, row.where, field)
    if row.data.get("system") and messages[0].role is not Role.SYSTEM:
        return (said(Role.SYSTEM, text_of(row.data, "system", row.where)), *messages)
    return messages


def answer_of(value: Any, where: str, field: str) -> tuple[Message, ...]:
    """An answer as messages: a text, a message, a list of messages, or Oumi's ``{"messages": [...]}``."""
    if isinstance(value, str):
        return (said(Role.ASSISTANT, value),)
    if isinstance(value, Mapping):
        inner = next((name for name in ("messages", "conversations") if name in value), None)
        return messages_of([value] if inner is None else value[inner], where, field)
    return messages_of(value, where, field)


def messages_of(value: Any, where: str, field: str) -> tuple[Message, ...]:
    """A list of turns in OpenAI's or ShareGPT's spelling."""
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise DataError(f"{where}: {field} is {value!r:.60}, neither a text nor a list of messages")
    try:
        return tuple(Conversation.model_validate({"messages": [to_turn(turn) for turn in value]}).messages)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([field, *(str(part) for part in first["loc"][1:])])
        raise DataError(f"{where}: {path}: {first['msg']} (got {first['input']!r:.60})") from None


def to_turn(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """ShareGPT's ``from`` and ``value`` as ``role`` and ``content``; any other turn as it is."""
    if turn.keys() >= {"from", "value"}:
        return {"role": SHAREGPT.get(turn["from"], turn["from"]), "content": turn["value"]}
    return turn


def said(role: Role, text: str) -> Message:
    """One turn."""
    return Message(role=role, content=text)


def is_whole(prompt: tuple[Message, ...] | None, *answers: tuple[Message, ...]) -> bool:
    """Whether answers that begin with a question are whole conversations: of the prompt, or where it is one text."""
    return not prompt or len(prompt) == 1 or all(answer[: len(prompt)] == prompt for answer in answers)


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
    answers = tuple((said(Role.ASSISTANT, text.removeprefix(prompt)),) for text in (chosen, rejected))
    return ((said(Role.USER, prompt),) if prompt.strip() else ()), *answers


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

    def __call__(self, row: Row) -> Sample:
        pair = to_pair(row)
        try:
            chosen, rejected = (self._encode(conversation, pair.tools) for conversation in pair.conversations)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
        return joined(chosen, rejected, row.where)

    def shorten(self, row: Row, max_length: int) -> Sample:
        """The pair with both answers cut off; see :func:`cut_pair`."""
        return cut_pair(self(row), max_length)

    def _encode(self, conversation: Conversation, tools: list[dict[str, Any]] | None) -> Encoded:
        from graftwork.chat import check_turns, encode_conversation

        encoded = encode_conversation(
            conversation,
            tokenizer=self.tokenizer,
            train_target="final_assistant_turn",
            special_tokens_in_content=self.special_tokens_in_content,
            **{**self.variables, "tools": tools},
        )
        encoded = check_turns(encoded, self.stop_ids, self.tokenizer)
        return np.asarray(encoded.input_ids, np.int32), np.asarray(encoded.trained, np.bool_)


def pair_encoder(
    tokenizer: PreTrainedTokenizerFast,
    split: DatasetSplitParams,
    stop_ids: frozenset[int],
    variables: Mapping[str, Any],
    special_tokens_in_content: str = "error",
) -> PairEncoder:
    """How rows of ``split`` become pairs. Of its ``train_target`` only ``final_assistant_turn`` has a meaning here."""
    return PairEncoder(
        tokenizer=tokenizer,
        stop_ids=stop_ids,
        variables=variables,
        special_tokens_in_content=special_tokens_in_content,
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


def cut_pair(sample: Sample, max_length: int) -> Sample:
    """Both answers cut off after ``max_length`` tokens of their conversations, as TRL's ``keep_start`` does.

    Raises :class:`TooLongError` where nothing trained is left of one of them.
    """
    assert sample.parts is not None
    prompt, *answers = sample.parts
    kept = [max(0, min(answer, max_length - prompt)) for answer in answers]
    places = np.r_[: prompt + kept[0], prompt + answers[0] : prompt + answers[0] + kept[1]]
    trained = sample.trained[places]
    if not (trained[: prompt + kept[0]].any() and trained[prompt + kept[0] :].any()):
        raise TooLongError(f"its prompt of {prompt} tokens leaves no room for both answers")
    return Sample(sample.input_ids[places], trained, sample.where, (prompt, kept[0], kept[1]))
