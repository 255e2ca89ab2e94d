"""Rewards for GRPO: plain Python, one number for each completion."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
MARKED = re.compile(r"####\s*(\S[^\n]*)")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
TOKENS_PER_POINT = 1000
"""A completion of so many tokens loses one point."""


def answer_match(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str], **columns: Any
) -> list[float]:
    r"""1 where a completion comes to the row's ``answer``, else 0.

    What counts of both is the last ``\boxed{...}``, else what follows ``####`` (as in gsm8k), else the last number,
    else the whole text. ``1,234`` equals ``1234.0``.
    """
    return [
        float(final_answer(text_of(completion)) == final_answer(expected))
        for completion, expected in zip(completions, answer, strict=True)
    ]


def length_penalty(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any
) -> list[float]:
    """Minus a thousandth for each token of a completion: between equally right answers the shorter one wins."""
    return [-len(ids) / TOKENS_PER_POINT for ids in completion_ids]


def text_of(completion: Any) -> str:
    """The text of a completion, which TRL gives as a text or as a list of messages."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def final_answer(text: str) -> str | float:
    """What a text comes to."""
    for pattern in (BOXED, MARKED):
        if found := pattern.findall(text):
            return normal(found[-1])
    numbers = NUMBER.findall(text)
    return normal(numbers[-1]) if numbers else normal(text)


def normal(text: str) -> str | float:
    """A number as a number, anything else without case and surrounding space."""
    plain = text.strip().strip("$").rstrip(".").replace(",", "")
    try:
        return float(plain)
    except ValueError:
        return text.strip().casefold()
