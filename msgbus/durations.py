"""Durations: how long the methods of a server have taken."""

from __future__ import annotations

from math import log2

STEPS = 4
"""Ranges of durations between one power of two and the next: the bounds of each are a fifth apart."""
LEAST, MOST = -20, 18
"""Exponents of two: what takes less than a microsecond, and more than three days, is not told apart."""
_LEAST_SECONDS = 2.0**LEAST
_FIRST, _LAST = -STEPS * LEAST, STEPS * (MOST - LEAST) - 1


class Durations(list[int]):
    """How many methods have taken how long: a count for each range of durations. Thread-safe, as `MethodCounts`."""

    def __init__(self) -> None:
        super().__init__([0] * (_LAST + 1))

    def add(self, seconds: float) -> None:
        """Count a method that has taken so many seconds."""
        at = int(log2(max(seconds, 0.0) + _LEAST_SECONDS) * STEPS + _FIRST)
        self[min(at, _LAST)] += 1

    def shown(self) -> list[tuple[float, int]]:
        """For each range in which there is any, the shortest first: its upper bound in seconds, and the count."""
        return [(_upper_bound(at), count) for at, count in enumerate(self) if count]


def _upper_bound(at: int) -> float:
    bound: float = 2.0 ** ((at + 1 - _FIRST) / STEPS) - _LEAST_SECONDS
    return bound
