"""Whose notices are graftwork's: those of the core, and those of the packages that active plugins come in."""

from __future__ import annotations

import logging

from graftwork.registry import get_registry

CORE = "graftwork"


def own_loggers() -> list[logging.Logger]:
    """The loggers above all of them; none is above another."""
    names = {CORE, *get_registry(lenient=True).packages}
    return [logging.getLogger(name) for name in sorted(names) if not any(name.startswith(f"{it}.") for it in names)]
