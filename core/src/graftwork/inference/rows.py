"""One completion in the making: its ids, its text, and whether and why it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftwork.inference.engine import Completion, FinishReason
from graftwork.inference.text import Detokenizer, StopStrings

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerFast

    from graftwork.inference.prompts import EncodedPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """What ends a row, ``limit`` in new tokens, and what its text holds.

    ``special`` keeps special tokens in the text (never the stop token), ``echo`` begins it with the prompt.
    """

    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    limit: int
    special: bool = False
    echo: bool = False


class Row:
    """Collects one row's tokens until it is done; ``show`` gets its text as it comes."""

    def __init__(
        self,
        prompt: EncodedPrompt,
        tokenizer: PreTrainedTokenizerFast,
        rules: RowRules,
        show: Callable[[str], None] | None = None,
    ) -> None:
        self._prompt, self._rules, self._show = prompt, rules, show
        self._detokenizer = Detokenizer(tokenizer, prompt.context, special=rules.special)
        self._stops = StopStrings(rules.stop_strings)
        self._ids: list[int] = []
        self._text: list[str] = []
        self._reason: FinishReason | None = None
        if rules.echo:
            self._emit(prompt.text)

    @property
    def done(self) -> bool:
        return self._reason is not None

    def push(self, token_id: int) -> None:
        """Takes the next id. A row that is done ignores it: it is padding beside longer rows."""
        if self.done:
            return
        self._ids.append(token_id)
        if token_id in self._rules.stop_ids:
            self._reason = "stop"
            return
        self._emit(self._stops.push(self._detokenizer.push(token_id)))
        if self._stops.found:
            self._reason = "stop"
        elif len(self._ids) >= self._rules.limit:
            self._reason = "length"

    def finish(self) -> Completion:
        """The completion, with the text that was still held back."""
        self._emit(self._stops.push(self._detokenizer.finish()))
        self._emit(self._stops.finish())
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._ids),
            prompt_tokens=len(self._prompt.ids),
            finish_reason=self._reason or "cancelled",
        )

    def _emit(self, text: str) -> None:
        if not text:
            return
        self._text.append(text)
        if self._show:
            self._show(text)
