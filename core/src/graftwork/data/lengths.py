"""What is too long: an error, dropped, or cut; and a row's whole way to a sample, with what became of it."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from graftwork.data.account import Outcome
from graftwork.errors import DataError, GraftworkError, RunError

if TYPE_CHECKING:
    from graftwork.data.readers import Row
    from graftwork.data.samples import Encode, Sample


class TooLongError(DataError):
    """Nothing of a row that is worth training on fits; the message says why, without the row's place."""


@runtime_checkable
class Shortens(Protocol):
    """An encoder that can leave out part of a row that is too long."""

    def shorten(self, row: Row, max_length: int) -> Sample:
        """The row in at most ``max_length`` tokens. Raises :class:`TooLongError` where nothing of it is left."""
        ...


def prepare(row: Row, encode: Encode, max_length: int | None, over_long: str) -> Outcome:
    """The row's sample within ``max_length`` tokens (None: documents, which are cut later), or why it has none.

    ``over_long`` is ``error`` (the row is rejected), ``drop`` or ``truncate``. What is nobody's finding about the row
    but a fault of the code that reads it comes as a :class:`~graftwork.errors.RunError` that names the row.
    """
    try:
        sample = encode(row)
        if max_length is not None and sample.longest > max_length:
            return fit(row, sample, encode, max_length, over_long)
        if not teaches(sample):
            return Outcome(row.where, None, "dropped", "nothing to learn: it is empty, or no token of it is trained")
    except DataError as error:
        return Outcome(row.where, None, "rejected", str(error).removeprefix(f"{row.where}: "))
    except (GraftworkError, MemoryError):
        raise
    except Exception as error:
        raise unexpected(row, error) from error
    return Outcome(row.where, sample)


def unexpected(row: Row, error: Exception) -> RunError:
    """The error that says where it happened. The traceback goes along as a note, for it outlives the way here from
    another process; ``--debug`` shows it.
    """
    found = RunError(
        f"{row.where}: this row could not be prepared: {type(error).__name__}: {' '.join(str(error).split())}. Nothing "
        "was trained and nothing is lost. That looks like a bug of what reads such rows (a dataset's plugin, a "
        "template, graftwork): graft --debug ... shows where; without the row the run goes on"
    )
    found.add_note("".join(traceback.format_exception(error)))
    return found


def fit(row: Row, sample: Sample, encode: Encode, max_length: int, over_long: str) -> Outcome:
    """What the policy makes of a sample that is too long."""
    size = f"{sample.longest} tokens, but a sample may have {max_length}"
    if over_long == "error":
        raise DataError(f"{row.where}: {size}; raise max_length, or set over_long: drop or truncate")
    if over_long == "drop":
        return Outcome(row.where, None, "dropped", f"too long: {size}")
    if not isinstance(encode, Shortens):
        return Outcome(row.where, None, "dropped", f"too long, and rows of this kind are not cut: {size}")
    try:
        shorter = encode.shorten(row, max_length)
    except TooLongError as error:
        return Outcome(row.where, None, "dropped", f"{error} ({size})")
    if not teaches(shorter):
        return Outcome(row.where, None, "dropped", f"too long, and no answer that fits is trained: {size}")
    return Outcome(row.where, shorter, "truncated", f"too long: {size}")


def teaches(sample: Sample) -> bool:
    """Whether any token is learned; the first of a sample is not predicted."""
    return bool(sample.trained[1:].any())
