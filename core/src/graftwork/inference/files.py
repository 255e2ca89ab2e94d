"""Completing the rows of a JSON lines file into another one, in as many sittings as it takes."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.errors import DataError, GraftworkError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from graftwork.config import GenerationParams
    from graftwork.inference.engine import Completion, Engine, Prompt

MOST_PROBLEMS = 20
WRITTEN = ("completion", "finish_reason", "prompt_tokens", "completion_tokens", "graftwork")
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """A row of the input: ``index`` counts rows from 0, ``line`` lines from 1, ``data`` is the whole object."""

    index: int
    line: int
    data: Mapping[str, Any]

    @property
    def prompt(self) -> str | Sequence[Mapping[str, Any]]:
        """The text, or the messages."""
        found: str | Sequence[Mapping[str, Any]] = self.data["prompt" if "prompt" in self.data else "messages"]
        return found

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.data)


def fingerprint(value: Any) -> str:
    """A short hash of JSON-able data that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


# Reading


def read_rows(path: Path) -> list[InputRow]:
    """The rows of ``path``. Raises :class:`DataError` that names every bad row, with its line."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; --input takes a JSON lines file") from None
    rows: list[InputRow] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(InputRow(index=len(rows), line=number, data=_parsed(line)))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise DataError("\n".join(_shortened(problems)))
    if not rows:
        raise DataError(f"{path}: there are no rows in it; each line is an object with 'prompt' or 'messages'")
    return rows


def _parsed(line: bytes) -> dict[str, Any]:
    """The row of a line; ``ValueError`` says what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object with 'prompt' or 'messages', not {str(row)[:40]!r}")
    if ("prompt" in row) == ("messages" in row):
        which = "both 'prompt' and 'messages'" if "prompt" in row else "neither 'prompt' nor 'messages'"
        raise ValueError(f"the row has {which}; give one (it has: {', '.join(row) or 'nothing'})")
    if taken := [name for name in WRITTEN if name in row]:
        raise ValueError(f"the row has a field {taken[0]!r}, where the answer would go; rename it")
    _check_prompt(row)
    return row


def _check_prompt(row: Mapping[str, Any]) -> None:
    if "prompt" in row and not isinstance(row["prompt"], str):
        raise ValueError(f"'prompt' is a text, not {str(row['prompt'])[:40]!r}")
    if "messages" in row:
        _check_messages(row["messages"])


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"'messages' is a list of turns, not {str(messages)[:40]!r}")
    for place, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or message.get("role") not in _ROLES or "content" not in message:
            raise ValueError(
                f"message {place} needs a 'role' ({', '.join(_ROLES)}) and a 'content', and is {str(message)[:60]!r}"
            )
    if messages[-1]["role"] in ("assistant", "system"):
        raise ValueError(f"the last message is the {messages[-1]['role']}'s: there is nothing to answer")


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - MOST_PROBLEMS
    return [*problems[:MOST_PROBLEMS], *([f"... and {more} more bad rows"] if more > 0 else [])]


def check_prompts(engine: Engine, rows: Sequence[InputRow], prompts: Sequence[Prompt], source: str) -> None:
    """Raises :class:`DataError` that names every row the model cannot take, before it is asked the first."""
    problems = []
    for row, prompt in zip(rows, prompts, strict=True):
        try:
            count, context = engine.count(prompt), engine.context_length
        except GraftworkError as error:
            problems.append(f"{source}:{row.line}: {error}")
            continue
        if context is not None and count >= context:
            problems.append(
                f"{source}:{row.line}: the prompt has {count} tokens and the model's context is {context}, which "
                "leaves no room for an answer: shorten it"
            )
    if problems:
        raise DataError("\n".join(_shortened(problems)))


# Writing


class CompletionFile:
    """The output: one line per completed row, in the order of the input.

    ``settings`` is what the completions depend on besides the rows. A file that was begun with others, or from
    other rows, is refused with :class:`UsageError` rather than mixed.
    """

    def __init__(self, path: Path, rows: Sequence[InputRow], settings: Mapping[str, Any]) -> None:
        self.path = path
        self._rows = rows
        self._settings = fingerprint(settings)
        self.done, self._length = self._read()

    def _read(self) -> tuple[int, int]:
        """How many rows are complete, and in how many bytes. What comes after is a line cut short."""
        if not self.path.exists():
            return 0, 0
        *complete, tail = self.path.read_bytes().split(b"\n")
        for index, line in enumerate(complete):
            self._check(index, self._mark(line))
        if tail and not self._may_start(len(complete), tail):
            self._check(len(complete), None)
        return len(complete), sum(len(line) + 1 for line in complete)

    def _may_start(self, index: int, tail: bytes) -> bool:
        """Whether ``tail`` is the beginning of the answer to a row, and nobody's text."""
        if index >= len(self._rows):
            return False
        start = _encoded(self._rows[index].data)[:-1]
        return tail.startswith(start) or start.startswith(tail)

    def _mark(self, line: bytes) -> dict[str, Any] | None:
        try:
            mark = json.loads(line)["graftwork"]
        except (ValueError, KeyError, TypeError):
            return None
        return mark if isinstance(mark, dict) else None

    def _check(self, index: int, mark: Mapping[str, Any] | None) -> None:
        where, instead = f"{self.path}:{index + 1}", "give another --output, or remove the file"
        if mark is None:
            raise UsageError(f"{where}: is no completed row of graft generate; {instead}")
        if mark.get("settings") != self._settings:
            raise UsageError(f"{where}: was written with another model or other options; give the same, {instead}")
        if index >= len(self._rows) or mark.get("row") != index or mark.get("input") != self._rows[index].fingerprint:
            raise UsageError(f"{where}: is not the answer to row {index + 1} of the input; {instead}")

    def append(self, rows: Sequence[InputRow], completions: Sequence[Completion]) -> None:
        """Writes the answers to the next rows, and returns when they are on the disk."""
        lines = [self._line(row, made) for row, made in zip(rows, completions, strict=True)]
        data = b"".join(line + b"\n" for line in lines)
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._length)
            file.seek(self._length)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.done, self._length = self.done + len(rows), self._length + len(data)

    def _line(self, row: InputRow, made: Completion) -> bytes:
        answer = {
            "completion": made.text,
            "finish_reason": made.finish_reason,
            "prompt_tokens": made.prompt_tokens,
            "completion_tokens": made.completion_tokens,
            "graftwork": {"row": row.index, "input": row.fingerprint, "settings": self._settings},
        }
        return _encoded({**row.data, **answer})


def _encoded(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")


def complete_rows(
    engine: Engine,
    rows: Sequence[InputRow],
    prompts: Sequence[Prompt],
    output: CompletionFile,
    params: GenerationParams,
) -> Iterator[list[Completion]]:
    """Completes what ``output`` lacks, a batch at a time, and yields each batch once it is on the disk.

    ``prompts`` are those of ``rows``, as the engine is to get them.
    """
    while output.done < len(rows):
        start = output.done
        end = start + params.batch_size
        made = engine.generate(prompts[start:end], params, first_index=start)
        output.append(rows[start:end], made)
        yield made
