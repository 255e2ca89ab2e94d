"""``python -m graftwork`` is ``graft``; ``torchrun -m graftwork train ...`` needs a module to run."""

from __future__ import annotations

import sys

from graftwork.cli import main

if __name__ == "__main__":
    sys.exit(main())
