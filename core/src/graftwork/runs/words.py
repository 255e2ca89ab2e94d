"""Numbers as a person reads them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

MINUTE_S, HOUR_S = 60, 3600
KIB, MIB, GIB = 2**10, 2**20, 2**30


def number(value: float) -> str:
    """Four digits that mean something: ``2.413``, ``0.03121``, ``1.52e-05``; ``NaN`` as such."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return scientific(value)
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def scientific(value: float) -> str:
    """``1.5e-5``, without the zeros that Python writes."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def round_number(value: float) -> str:
    """A number at an axis, which is round already."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return scientific(value)
    return f"{value:.6g}"


def count(value: float) -> str:
    """``812``, ``12.4 k``, ``1.25 M``, ``8.03 B``."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit * 0.99995:
            scaled = value / (1e3 if letter == "k" else limit)
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {letter}"
    return f"{value:,.0f}"


def round_count(value: float) -> str:
    """A count at an axis: ``2,500``, ``20k``, ``1.5M``."""
    for least, size, letter in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:g}{letter}"
    return f"{value:,.10g}"


def memory(value_bytes: float) -> tuple[str, str]:
    """The number and its unit: ``("3.21", "GiB")``."""
    size, unit = (GIB, "GiB") if value_bytes >= GIB else (MIB, "MiB")
    scaled = value_bytes / size
    return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}", unit


def duration(value_s: float) -> str:
    """``24 ms``, ``8.4 s``, ``3 min 12 s``, ``2 h 05 min``."""
    if value_s < 0.9995:
        return f"{1000 * value_s:.{0 if value_s >= 0.01 else 1}f} ms"
    if value_s < 9.95:
        return f"{value_s:.1f} s"
    whole = round(value_s)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S:02d} s"
    return f"{whole // HOUR_S:,} h {whole % HOUR_S // MINUTE_S:02d} min"


def change(before: float, after: float) -> str:
    """``−58 %``: how much of ``before`` went or came."""
    if not before or not math.isfinite(before) or not math.isfinite(after):
        return ""
    percent = 100 * (after - before) / abs(before)
    digits = 0 if abs(percent) >= 10 else 1
    return f"{'+' if percent > 0 else '−'}{abs(percent):.{digits}f} %"


def moment(value: Any) -> datetime | None:
    """A time as run.json has it: ISO text, or seconds since 1970; None where it is neither."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, tz=UTC)
        return datetime.fromisoformat(str(value))
    except (ValueError, OverflowError, OSError):
        return None
