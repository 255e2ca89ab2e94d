"""What an audit finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["code", "lie", "note"]
"""``code`` could run code that came with the model; a ``lie`` is not what it says, or leads out of the folder; a
``note`` is worth knowing.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing in one file. ``key`` is the place in it and ``value`` what stands there, both empty where the file
    itself is meant.
    """

    severity: Severity
    file: str
    what: str
    remedy: str
    key: str = ""
    value: str = ""
