"""A row to a sample: token ids, and which of them are trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graftwork.chat.vocabulary import half_a_character
from graftwork.data.conversations import plain_turns, texts_of, to_conversation, tools_of
from graftwork.data.readers import Row
from graftwork.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from graftwork.chat import EncodedChat
    from graftwork.chat.moulds import Moulds
    from graftwork.config import DatasetSplitParams
    from graftwork.messages import Conversation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """T tokens. ``trained[t]`` says that token t is learned, that is, predicted from the tokens before it.

    Of a preference pair ``parts`` are the numbers of tokens of the prompt, the chosen and the rejected answer, which
    lie one after the other.
    """

    input_ids: NDArray[np.int32]  # [T]
    trained: NDArray[np.bool_]  # [T]
    where: str
    parts: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation in it: of a pair, the prompt with the longer answer."""
        return len(self) if self.parts is None else self.parts[0] + max(self.parts[1:])

    def cut(self, start: int, stop: int) -> Sample:
        """A piece of the sample."""
        return Sample(self.input_ids[start:stop], self.trained[start:stop], self.where)


def to_plain(sample: Sample) -> dict[str, Any]:
    """The sample as plain data, for a checkpoint."""
    return {
        "input_ids": sample.input_ids.tolist(),
        "trained": sample.trained.tolist(),
        "where": sample.where,
        "parts": sample.parts and list(sample.parts),
    }


def from_plain(data: dict[str, Any]) -> Sample:
    """The inverse of :func:`to_plain`."""
    ids, trained = np.asarray(data["input_ids"], np.int32), np.asarray(data["trained"], np.bool_)
    parts = data.get("parts")
    return Sample(ids, trained, data["where"], None if parts is None else (parts[0], parts[1], parts[2]))


Encode = Callable[[Row], Sample]


def text_encoder(tokenizer: PreTrainedTokenizerFast, text_field: str) -> Encode:
    """Documents: the tokenizer's BOS if it has one of its own, the text, and EOS; every token is trained."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no EOS token to end a document "
            'with; set model.tokenizer_kwargs: {eos_token: "..."}'
        )
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []

    def encode(row: Row) -> Sample:
        text = row.data.get(text_field)
        if not isinstance(text, str):
            known = ", ".join(row.data) or "none"
            raise DataError(
                f"{row.where}: no text in field {text_field!r}; fields: {known}; set dataset_kwargs.text_field"
            )
        try:
            inner = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        except (TypeError, ValueError):
            raise DataError(f"{row.where}: {half_a_character(text)}") from None
        ids = [*bos, *inner, tokenizer.eos_token_id]
        return Sample(np.asarray(ids, np.int32), np.ones(len(ids), np.bool_), row.where)

    return encode


def adds_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer itself begins a text with its BOS token."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id


@dataclass(slots=True, kw_only=True)
class ChatEncoder:
    """Conversations through the tokenizer's chat template; the assistant's tokens are trained.

    Every trained turn must end in a stop token: a model that never learns to stop is the commonest silent
    failure of fine-tuning. ``variables`` are the template's (``model.chat_template_kwargs``).
    ``special_tokens_in_content`` is ``data.special_tokens_in_content``.
    """

    tokenizer: PreTrainedTokenizerFast
    messages_field: str | None
    train_target: str
    stop_ids: frozenset[int]
    variables: Mapping[str, Any]
    special_tokens_in_content: str = "error"
    asked: bool = False  # the generation prompt is tried on the first conversation
    _moulds: Moulds | None = None

    def __call__(self, row: Row) -> Sample:
        if not self.asked:
            return self.encode(row, self.conversation(row))
        turns, conversation = plain_turns(row, self.messages_field), None
        if turns is None:
            conversation = self.conversation(row)
            turns = None if row.data.get("tools") else texts_of(conversation)
        sample = None if turns is None else self.poured(row, *turns)
        return self.encode(row, conversation or self.conversation(row)) if sample is None else sample

    def poured(self, row: Row, roles: tuple[str, ...], texts: Sequence[str]) -> Sample | None:
        """The sample that :meth:`encode` would make, sooner; None where that is to make it."""
        moulds = self._moulds = self._moulds or self._all_moulds()
        poured = moulds and moulds.encode(roles, texts)
        if not poured:
            return None
        trained = np.zeros(len(poured.input_ids), np.bool_)
        for start, end in poured.trained:
            trained[start:end] = True
        return Sample(np.array(poured.input_ids, np.int32), trained, row.where)

    def _all_moulds(self) -> Moulds | None:
        from graftwork.chat.moulds import Moulds

        if not hasattr(self.tokenizer, "backend_tokenizer"):
            return None
        return Moulds(
            self.tokenizer,
            train_target=self.train_target,
            special_tokens_in_content=self.special_tokens_in_content,
            stop_ids=self.stop_ids,
            variables={**self.variables, "tools": None},
        )

    def shorten(self, row: Row, max_length: int) -> Sample:
        """The row with whole turns left out, else with its first answer cut; see :mod:`graftwork.data.truncate`."""
        from graftwork.data.truncate import shorten

        return shorten(self, row, max_length)

    def conversation(self, row: Row) -> Conversation:
        """The row as a conversation."""
        return to_conversation(row, self.messages_field)

    def given(self, row: Row) -> dict[str, Any]:
        """What the template is given beside the messages."""
        return {
            **self.variables,
            "tools": tools_of(row),
            "special_tokens_in_content": self.special_tokens_in_content,
        }

    def checked(self, encoded: EncodedChat) -> EncodedChat:
        """The same, if each of its trained turns ends in a stop token."""
        from graftwork.chat import check_turns

        return check_turns(encoded, self.stop_ids, self.tokenizer)

    def encode(self, row: Row, conversation: Conversation) -> Sample:
        """A conversation of the row as a sample."""
        from graftwork.chat import encode_conversation, prompt_mismatch

        given = self.given(row)
        try:
            encoded = self.checked(
                encode_conversation(conversation, tokenizer=self.tokenizer, train_target=self.train_target, **given)
            )
            if not self.asked:
                self.asked = True
                if mismatch := prompt_mismatch(conversation, tokenizer=self.tokenizer, **given):
                    logger.warning("%s: %s", row.where, mismatch)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
        return Sample(np.asarray(encoded.input_ids, np.int32), np.asarray(encoded.trained, np.bool_), row.where)


def chat_encoder(
    tokenizer: PreTrainedTokenizerFast,
    split: DatasetSplitParams,
    messages_field: str | None,
    stop_ids: frozenset[int],
    variables: Mapping[str, Any],
    special_tokens_in_content: str = "error",
) -> ChatEncoder:
    """How the rows of ``split`` become samples."""
    return ChatEncoder(
        tokenizer=tokenizer,
        messages_field=messages_field,
        train_target=split.train_target,
        stop_ids=stop_ids,
        variables=variables,
        special_tokens_in_content=special_tokens_in_content,
    )


def windows(sample: Sample, max_length: int) -> Sequence[Sample]:
    """A document cut into pieces of at most ``max_length`` tokens; a last piece of one token teaches nothing."""
    pieces = [sample.cut(start, start + max_length) for start in range(0, len(sample), max_length)]
    return [piece for piece in pieces if len(piece) > 1]
