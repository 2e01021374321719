"""Numbers for people, three digits of each."""

from __future__ import annotations

COUNTS = ((1e9, " B"), (1e6, " M"), (1e3, " k"))
SIZES = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))


def count(number: float) -> str:
    """``4,120``, ``35.1 k``, ``26.3 M``, ``3.25 B``."""
    return f"{number:,.0f}" if number < 1e4 else _short(number, COUNTS)


def size(number: float) -> str:
    """Bytes: ``49.4 GB``."""
    return _short(number, SIZES)


def _short(number: float, units: tuple[tuple[float, str], ...]) -> str:
    for unit, name in units:
        if number >= unit:
            return f"{number / unit:.3g}{name}" if number < 999.5 * unit else f"{number / unit:,.0f}{name}"
    return f"{number:.0f}"


def hours(seconds: float) -> str:
    """Of devices: ``0.0721``, ``136``, ``12,500``."""
    return f"{seconds / 3600:.3g}" if seconds < 999.5 * 3600 else f"{seconds / 3600:,.0f}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``7 min``, ``3.4 h``, ``12 days``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    if seconds < 72 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.0f} days"
