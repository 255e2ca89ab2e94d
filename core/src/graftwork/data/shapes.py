"""What a row is, told from its fields: text, a conversation, one with images, or a preference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graftwork.data.conversations import ALPACA, PAIRS, TURNS, given

if TYPE_CHECKING:
    from graftwork.specs import Schema

ANSWERS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
    ("preferred_output", "non_preferred_output"),
)
IMAGES = ("image", "images")


def shape_of(data: Mapping[str, Any], messages_field: str | None = None, text_field: str = "text") -> Schema | None:
    """The schema of a row, or None where its fields say nothing. Fields that are null count as not there.

    A row of a preference set may have a whole conversation beside its answers, and one with images is a
    conversation too, so the more particular ones come first.
    """
    turns = next((field for field in (messages_field, *TURNS) if field is not None and given(data, field)), None)
    chat = turns is not None or any(given(data, names[0]) and given(data, names[-1]) for names in (*ALPACA, *PAIRS))
    if is_pair(data):
        return "preference"
    if chat and isinstance(data.get("label"), bool):
        return "preference"
    if chat and (any(given(data, field) for field in IMAGES) or has_images(data.get(turns or ""))):
        return "image-chat"
    if chat:
        return "chat"
    return "text" if isinstance(data.get(text_field), str) else None


def is_pair(data: Mapping[str, Any]) -> bool:
    """Whether a row has two answers, one of which is preferred."""
    return any(given(data, chosen) and given(data, rejected) for chosen, rejected in ANSWERS)


def has_images(turns: Any) -> bool:
    """Whether a turn has a part that is an image, under Oumi's or OpenAI's names."""
    contents = [turn.get("content") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, Mapping) and str(part.get("type", "")).startswith("image") for part in parts)
