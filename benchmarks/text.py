"""How figures and sizes are written, in the terminal and on the page."""

from __future__ import annotations

from benchmarks.results import Spread


def size_text(size: int) -> str:
    """The size of payloads."""
    if size >= 1024 * 1024:
        return f"{size / 1024 / 1024:g} MiB"
    return f"{size / 1024:g} KiB" if size >= 1024 else f"{size} bytes"


def number(value: float) -> str:
    """A figure with as many digits as say something."""
    return f"{value:,.{_places(value)}f}"


def low_high(spread: Spread) -> str:
    """The least and the most of a figure."""
    places = _places(spread.median)
    return f"{spread.low:,.{places}f} - {spread.high:,.{places}f}"


def _places(value: float) -> int:
    return 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
