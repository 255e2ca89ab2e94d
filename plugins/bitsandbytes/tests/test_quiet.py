"""Who does not use bitsandbytes does not hear of it."""

from __future__ import annotations

import subprocess
import sys


def test_attaching_an_adapter_says_nothing_of_bitsandbytes() -> None:
    """On a CPU with AVX-512 bitsandbytes warns when PEFT imports it, before any plugin is looked for."""
    code = "from graftwork import attach_adapter; import sys; print('bitsandbytes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
