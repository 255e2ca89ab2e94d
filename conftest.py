"""What every test of every package begins with."""

from __future__ import annotations

import os

# Prepared samples of a test are nobody's later: those that test the cache name a folder of their own.
os.environ["GRAFTWORK_CACHE"] = "off"
