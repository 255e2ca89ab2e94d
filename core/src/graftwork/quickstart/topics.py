"""The language reference that every Python carries, ``pydoc_data.topics``: the text of ``help("for")``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module

from graftwork.errors import DataError

SHORTEST_SHARED = 60
"""Characters from which a paragraph that two documents share is a copy; shorter ones are headings and formulas."""


@dataclass(frozen=True, slots=True)
class Document:
    """One topic."""

    name: str
    text: str

    def paragraphs(self) -> set[str]:
        """The paragraphs long enough to be told apart, without regard to line breaks and indentation."""
        pieces = (" ".join(piece.split()) for piece in re.split(r"\n\s*\n", self.text))
        return {piece for piece in pieces if len(piece) >= SHORTEST_SHARED}


def read_topics() -> list[Document]:
    """All topics, in the order of their names.

    Raises :class:`DataError` where this Python was installed without them.
    """
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError(
            "this Python has no pydoc_data.topics, the text that the quickstart learns from: install the whole "
            "standard library (on Debian and Ubuntu the package python3, not python3-minimal)"
        ) from error
    return [Document(name, text.strip() + "\n") for name, text in sorted(topics.items())]


def related(documents: list[Document]) -> list[list[Document]]:
    """The documents in groups that share no paragraph: the topic "compound" holds "for", "if" and "while" again."""
    owner: dict[str, int] = {}
    groups: dict[int, list[Document]] = {}
    for number, document in enumerate(documents):
        paragraphs = document.paragraphs()
        linked = {owner[paragraph] for paragraph in paragraphs if paragraph in owner}
        members = [*(member for group in sorted(linked) for member in groups.pop(group)), document]
        groups[number] = members
        for paragraph, group in owner.items():
            if group in linked:
                owner[paragraph] = number
        owner |= dict.fromkeys(paragraphs, number)
    return list(groups.values())
