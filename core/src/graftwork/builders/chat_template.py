"""``build_chat_template``: a template's Jinja text from its name, its file or itself."""

from __future__ import annotations

from graftwork.chat.sandbox import compiled
from graftwork.chat.template import find_template


def build_chat_template(name: str) -> str:
    """The Jinja text of the template ``name`` (a registered name, a file, or the text itself).

    Raises :class:`~graftwork.errors.UsageError` for an unknown name, a missing file or wrong syntax.
    """
    source = find_template(name).source
    compiled(source)
    return source
