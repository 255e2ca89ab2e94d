"""A conversation that is too long: whole turns are left out from its end, else its first answer is cut in its text.

What a turn is opened and closed with is never cut: the tokens of a shorter conversation are those of a conversation,
and an answer that was cut ends in the middle of its text, without the marks that would have closed it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from graftwork.chat.encode import with_mask, write_chat
from graftwork.data.lengths import TooLongError
from graftwork.data.samples import Sample
from graftwork.messages import Conversation, Role

if TYPE_CHECKING:
    from graftwork.chat.encode import EncodedChat, Written
    from graftwork.data.readers import Row
    from graftwork.data.samples import ChatEncoder


def shorten(encoder: ChatEncoder, row: Row, max_length: int) -> Sample:
    """The beginning of the row's conversation that fits, up to the end of one of the assistant's turns."""
    conversation = encoder.conversation(row)
    messages = conversation.messages
    answers = [number for number, message in enumerate(messages) if message.role is Role.ASSISTANT]
    fits, found = -1, None
    # The whole is known to be too long; a conversation that goes on after its last answer has one more try.
    too_long = len(answers) - (answers[-1] == len(messages) - 1)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        sample = encoder.encode(row, Conversation(messages=messages[: answers[middle] + 1]))
        if len(sample) <= max_length:
            fits, found = middle, sample
        else:
            too_long = middle
    return found or cut_answer(encoder, row, Conversation(messages=messages[: answers[0] + 1]), max_length)


def cut_answer(encoder: ChatEncoder, row: Row, conversation: Conversation, max_length: int) -> Sample:
    """A conversation with one answer, its text cut at the limit. Raises :class:`TooLongError` with the reason."""
    if conversation.messages[-1].weight == 0:
        raise TooLongError("too long, and its first answer, which would be cut, has weight 0")
    written = write_chat(conversation, tokenizer=encoder.tokenizer, **encoder.given(row))
    encoded = encoder.checked(with_mask(written, encoder.tokenizer, encoder.train_target))
    stop = cut_place(written, encoded, conversation.messages[-1].text, max_length)
    ids, trained = np.asarray(encoded.input_ids[:stop], np.int32), np.asarray(encoded.trained[:stop], np.bool_)
    return Sample(ids, trained, row.where)


def cut_place(written: Written, encoded: EncodedChat, answer: str, max_length: int) -> int:
    """How many tokens of a conversation are left where the text of its last turn, ``answer``, is cut to fit.

    Never more than up to the text's end: what closes the turn is whole or not there. Raises :class:`TooLongError`
    where none of the text fits.
    """
    begin, end = text_span(written, answer.strip(), encoded.turns[-1])
    first = bisect_right(written.tokens.ends, begin)
    stop = min(max_length, bisect_right(written.tokens.ends, end))
    starts, ends = written.tokens.starts, written.tokens.ends
    # A character that several tokens write is not cut either; in parts, all tokens of a part have the same place.
    while written.template.encoding == "whole" and first < stop < len(ends) and starts[stop] < ends[stop - 1]:
        stop -= 1
    if stop <= first:
        raise TooLongError(f"too long, and its prompt of {first} tokens leaves no room for any of the answer")
    return stop


def text_span(written: Written, answer: str, turn: tuple[int, int]) -> tuple[int, int]:
    """Where the text of the answer begins and ends in what the template wrote for its turn (token positions)."""
    start, end = written.tokens.starts[turn[0]], written.tokens.ends[turn[1] - 1]
    place = written.text.find(answer, start, end)
    if not answer or written.text.rfind(answer, start, end) != place:
        raise TooLongError("too long, and its answer has no text of its own that could be cut")
    if place < 0:
        raise TooLongError("too long, and the chat template rewrites its answer, so it cannot be cut")
    return place, place + len(answer)
