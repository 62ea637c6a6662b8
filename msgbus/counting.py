"""MethodCounts: how often each method of a server has ended, and how."""

from __future__ import annotations

from msgbus.exceptions import AccessDenied, NoSuchMethod, UnsupportedVersion

FINISHED, FAILED, CANCELLED = range(3)
"""How a method may have ended: these are places in its counts."""
OUTCOMES = ("finished", "failed", "cancelled")
MOST_METHODS = 200
"""So many methods are counted by name, the others together: a dispatcher may run whatever its clients name."""

Method = tuple[str | None, str]
"""A namespace, and a method's name."""


class MethodCounts(dict[Method, list[int]]):
    """By method a list of how often it has finished, failed and was cancelled.

    It is counted by ``counts[method][outcome] += 1``. Any thread may do that: the interpreter does not change to
    another one within such a step.

    Attributes:
        others: the counts of all methods beyond `MOST_METHODS`.
        refused: how many requests were for a method that does not exist, or may not be called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.others = [0, 0, 0]
        self.refused = 0

    def __missing__(self, method: Method) -> list[int]:
        """The counts of a method that has not ended before."""
        return self.others if len(self) >= MOST_METHODS else self.setdefault(method, [0, 0, 0])

    def note_failure(self, method: Method, error: BaseException, *, cancelled: bool) -> None:
        """Count a request that has ended with an error."""
        if isinstance(error, NoSuchMethod | UnsupportedVersion | AccessDenied):
            self.refused += 1
        else:
            self[method][CANCELLED if cancelled else FAILED] += 1
