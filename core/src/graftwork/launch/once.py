"""What several processes of a run have to say at their end is said once, whoever comes first."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

SAID = "GRAFTWORK_SAID"
"""The environment variable with the launcher's folder that has a file for each message that was said."""
FIRST_S = 0.5
"""How long the others leave it to the first process, whose words stand without a number, to say the same."""


def mine_to_say(text: str) -> bool:
    """Whether no other process of the launcher has said ``text``; from now on this one has. True where none launched.

    A process that is not the first one waits a moment before it asks.
    """
    folder = os.environ.get(SAID)
    if folder is None:
        return True
    if os.environ.get("RANK", "0") != "0":
        time.sleep(FIRST_S)
    try:
        (Path(folder) / hashlib.sha256(text.encode()).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True  # the launcher is gone, and its folder
    return True


def messages_in(folder: Path) -> int:
    """How many messages were said."""
    return sum(1 for _ in folder.iterdir())
