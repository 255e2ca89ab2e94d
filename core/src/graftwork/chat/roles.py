"""Whose text a token is: the message that a stretch of the rendered text was written for."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from graftwork.chat.limits import Visit

Owner = tuple[int, int | None]
"""From which character on, and the index of the message; None is text before, between and after the messages."""


def owners(visits: Iterable[Visit], messages: Sequence[dict[str, Any]]) -> list[Owner]:
    """Which message each stretch of a traced rendering belongs to: the one that the innermost loop over messages
    was at. An item that is no message (a part of a content, a tool) belongs to the message around it.

    What a loop inside a macro wrote cannot be told apart.
    """
    numbers = {id(message): index for index, message in enumerate(messages)}
    inside: list[tuple[int, int | None]] = []
    found: list[Owner] = [(0, None)]
    for visit in visits:
        while any(loop == visit.loop for loop, _ in inside):
            inside.pop()
        if visit.item is not None:
            around = inside[-1][1] if inside else None
            inside.append((visit.loop, numbers.get(id(visit.item), around)))
        found.append((visit.length, inside[-1][1] if inside else None))
    return found


def owner_at(found: Sequence[Owner], places: Iterable[int]) -> Iterator[int | None]:
    """The message at each place."""
    starts = [start for start, _ in found]
    return (found[bisect_right(starts, place) - 1][1] for place in places)
