"""Rows of another kind than a reader takes: what they are, and what reads them and learns from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.data.shapes import shape_of
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.specs import Schema

KINDS: Mapping[Schema, str] = {"text": "documents", "chat": "conversations", "preference": "preference pairs"}
"""What the rows of a schema are called."""


def misplaced(data: Mapping[str, Any], wanted: Schema) -> str:
    """What a row is that is of another kind than ``wanted``, and the installed readers and trainers of that kind; empty
    where it is of none that is known.
    """
    found = shape_of(data)
    if found is None or found == wanted or found not in KINDS:
        return ""
    registry = get_registry()
    readers = sorted(name for name, spec in registry.datasets.items() if spec.schema == found and not spec.recognise)
    trainers = sorted(name for name, spec in registry.trainers.items() if found in spec.schemas)
    return (
        f"{KINDS[found]}, not {KINDS[wanted]}; read them with dataset_name: {' or '.join(readers)}, and train "
        f"on them with a trainer_type that learns from {KINDS[found]} ({', '.join(trainers) or 'none is installed'})"
    )
