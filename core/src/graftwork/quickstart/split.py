"""Training and held-out data that have nothing in common."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


def hold_out(
    groups: Sequence[Sequence[T]], share: float, size: Callable[[T], int], seed: int
) -> tuple[list[T], list[T]]:
    """The members to train on and those held out: whole groups, drawn by ``seed``, until they are ``share`` of all.

    A group that alone would be more than a quarter of the held-out part is always trained on, so that what is held
    out is more than a few things.
    """
    target = share * sum(size(member) for group in groups for member in group)
    sizes = [sum(map(size, group)) for group in groups]
    drawn = [number for number in range(len(groups)) if sizes[number] <= target / 4]
    random.Random(seed).shuffle(drawn)  # noqa: S311 (a draw, not a secret)
    held: set[int] = set()
    for number in drawn:
        if sum(sizes[one] for one in held) + sizes[number] <= target:
            held.add(number)
    return (
        [member for number, group in enumerate(groups) if number not in held for member in group],
        [member for number, group in enumerate(groups) if number in held for member in group],
    )
