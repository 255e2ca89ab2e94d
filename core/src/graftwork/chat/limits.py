"""The limits of one rendering, so that a template from anywhere can neither hang nor fill the memory.

A template is data that comes with a checkpoint. Jinja's sandbox keeps it from reaching Python; it does not
keep it from looping over ``range(100000)`` twice or from doubling a text forty times. Every loop step and
call is counted here, and what can make a text longer is measured before it is done.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any, Literal, NamedTuple

from graftwork.errors import UsageError

MAX_SIZE = 8_000_000
"""Characters (or list items, or bits of a number) of the output and of any value on the way to it."""
MAX_STEPS = 1_000_000
MAX_SECONDS = 10.0
_STEPS_PER_LOOK = 256
_WIDE_PERCENT = re.compile(r"%[-+ #0]*(\d*\.)?(\d{6}|\*)")
_WIDE_BRACES = re.compile(r"\{[^}]*(\d{6}|\{)")


class TemplateLimitError(UsageError):
    """A template looped, grew or took longer than a chat template has reason to."""


PieceKind = Literal["literal", "markup", "content"]


class Piece(NamedTuple):
    """One output: text of the file, a ``{{ }}`` that is a constant or a special token, or any other ``{{ }}``."""

    text: str
    kind: PieceKind


class Visit(NamedTuple):
    """Before which character the loop number ``loop`` took up ``item``; None where the loop was over."""

    length: int
    loop: int
    item: Any


class Rendering:
    """What one rendering has used so far, and where its ``{% generation %}`` blocks came to lie.

    A traced one also notes each output in ``pieces``, and in ``visits`` where a loop took up which of its items.
    """

    __slots__ = ("deadline", "emitted", "length", "pieces", "spans", "steps", "visits")

    def __init__(self) -> None:
        self.steps = 0
        self.emitted = 0
        self.length = 0
        self.spans: list[tuple[int, str]] = []
        self.pieces: list[Piece] = []
        self.visits: list[Visit] = []
        self.deadline = time.monotonic() + MAX_SECONDS

    def tick(self) -> None:
        """Counts one loop step or call; raises :class:`TemplateLimitError` beyond the limits."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TemplateLimitError(f"it took more than {MAX_STEPS:,} steps")
        if self.steps % _STEPS_PER_LOOK == 0 and time.monotonic() > self.deadline:
            raise TemplateLimitError(f"it took longer than {MAX_SECONDS:g} s")


CURRENT: ContextVar[Rendering | None] = ContextVar("graftwork_rendering", default=None)
"""The rendering that this thread is in; None while Jinja folds constants as it compiles."""


def tick() -> None:
    rendering = CURRENT.get()
    if rendering is not None:
        rendering.tick()


def measured(size: int) -> None:
    """Raises where a value would have more than ``MAX_SIZE`` characters or items."""
    if size > MAX_SIZE:
        raise TemplateLimitError(f"it made a text or list of more than {MAX_SIZE:,} characters or items")


def watch(items: Iterable[Any]) -> list[Any]:
    """The items of a ``for`` loop, each step of which is counted."""
    return _Watched(items)


def emitted(value: Any) -> Any:
    """Jinja's ``finalize``: counts what every ``{{ }}`` gives, also inside a macro or a ``{% set %}`` block."""
    rendering = CURRENT.get()
    if rendering is not None:
        rendering.emitted += _size(value)
        measured(rendering.emitted)
    return value


class _Watched(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        tick_once = _ticker()
        for item in super().__iter__():
            tick_once()
            yield item


def _ticker() -> Callable[[], None]:
    """What counts a step of the rendering that this thread is in."""
    rendering = CURRENT.get()
    return tick if rendering is None else rendering.tick


def join_texts(texts: Iterable[Any]) -> str:
    """Jinja's ``~``, measured."""
    pieces = [str(text) for text in texts]
    measured(sum(map(len, pieces)))
    return "".join(pieces)


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Raises where ``left operator right`` (one of ``* ** + %``) would be too large."""
    if operator == "+" and type(left) is str and type(right) is str:
        measured(len(left) + len(right))
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        measured(bits)
    elif operator == "+":
        measured(_size(left) + _size(right))
    elif operator == "*":
        measured(_size(left) * _count(right))
        measured(_size(right) * _count(left))
    elif operator == "%":
        check_call("format", left, ())


def check_call(name: str, subject: Any, args: Sequence[Any]) -> None:
    """Raises where the filter ``name``, or the method ``.name``, of ``subject`` would give too large a result."""
    estimate = _ESTIMATES.get(name)
    if estimate is not None:
        measured(estimate(subject, list(args)))


def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter ``function``, counted as a step, its growth and its result measured."""
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0
    estimate = _ESTIMATES.get(name)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tick()
        args = held(name, args)
        if estimate is not None and len(args) > skip:
            measured(estimate(args[skip], [*args[skip + 1 :], *kwargs.values()]))
        result = function(*args, **kwargs)
        measured(_size(result))
        return result

    return call


def held(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, those of a join as lists: what an iterator comes to cannot be told beforehand."""
    if name not in ("join", ".join"):
        return args
    return tuple(list(value) if isinstance(value, Iterator) else value for value in args)


def _size(value: Any) -> int:
    if type(value) is str:  # nearly always; asking for a Mapping is slow
        return len(value)
    return len(value) if isinstance(value, (str, list, tuple, Mapping)) else 0


def _count(value: Any) -> int:
    return abs(int(value)) if isinstance(value, int) else 0


def _padded(subject: Any, args: list[Any]) -> int:
    return max(map(_count, args), default=0)


def _replaced(subject: Any, args: list[Any]) -> int:
    if len(args) < 2 or not isinstance(args[0], str):
        return 0
    text = str(subject)
    return len(text) + text.count(args[0]) * _size(args[1])


def _joined(subject: Any, args: list[Any]) -> int:
    texts, separator = (args[0], subject) if isinstance(subject, str) and args else (subject, "".join(map(str, args)))
    items = list(texts) if isinstance(texts, (list, tuple, str, Mapping)) else []
    return _size(separator) * len(items) + sum(map(_size, items))


def _per_line(subject: Any, args: list[Any]) -> int:
    text = str(subject)
    return len(text) + (text.count("\n") + 1) * sum(_count(value) + _size(value) for value in args)


def _per_character(subject: Any, args: list[Any]) -> int:
    return max(_size(subject), 1) * max((_count(value) + _size(value) for value in args), default=1)


def _percent(subject: Any, args: list[Any]) -> int:
    return MAX_SIZE + 1 if _WIDE_PERCENT.search(str(subject)) else 0


def _braces(subject: Any, args: list[Any]) -> int:
    return MAX_SIZE + 1 if _WIDE_BRACES.search(str(subject)) else 0


_ESTIMATES: Mapping[str, Callable[[Any, list[Any]], int]] = {
    **dict.fromkeys(("center", ".center", ".ljust", ".rjust", ".zfill", "batch", "slice"), _padded),
    **dict.fromkeys((".expandtabs", "tojson", "wordwrap"), _per_character),
    **dict.fromkeys(("format", ".strftime_now"), _percent),
    **dict.fromkeys((".format", ".format_map"), _braces),
    **dict.fromkeys(("join", ".join"), _joined),
    **dict.fromkeys(("replace", ".replace"), _replaced),
    "indent": _per_line,
}
