"""Token ids to text as they come: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

# What byte-level and byte-fallback tokenizers decode the first bytes of a character to.
UNFINISHED = "\ufffd"


class Detokenizer:
    """Turns one row's token ids into text, one id at a time.

    ``context`` are the last ids of the prompt where the text goes on from it: a SentencePiece tokenizer
    drops the space in front of the first word of whatever it decodes, so ``Once upon`` + `` a time`` would
    lose one. Without it (a chat answer starts a text of its own) that space is dropped, as transformers does.
    ``special`` keeps special tokens in the text.

    Each call decodes a short window only: the ids since the last place where a character was complete, and
    the ones before it that make the window decode as the whole text would.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, context: Sequence[int] = (), *, special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._ids = list(context)
        self._window = 0
        self._read = len(self._ids)

    def push(self, token_id: int) -> str:
        """The text that this id completes; empty while a character is unfinished."""
        self._ids.append(token_id)
        return self._advance(final=False)

    def finish(self) -> str:
        """What is left: the replacement characters of bytes that never became a character."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        known = self._decode(self._ids[self._window : self._read])
        text = self._decode(self._ids[self._window :])
        if len(text) <= len(known) or (text.endswith(UNFINISHED) and not final):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(ids, skip_special_tokens=not self._special, clean_up_tokenization_spaces=False)
        )


class StopStrings:
    """Lets text through up to the first of ``stops``, holding back what may become the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that can be shown now. After :attr:`found` there is none."""
        if self.found:
            return ""
        text = self._held + piece
        cut = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self.found, self._held = True, ""
            return text[:cut]
        keep = len(text) - self._possible_start(text)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """The length of the longest end of ``text`` that a stop string starts with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)
