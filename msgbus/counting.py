"""MethodCounts: how often each method of a server has ended, and how. Names: those that are told apart in metrics."""

from __future__ import annotations

from collections.abc import Callable

from msgbus.exceptions import AccessDenied, NoSuchMethod, UnsupportedVersion

FINISHED, FAILED, CANCELLED = range(3)
"""How a method may have ended: these are places in its counts."""
OUTCOMES = ("finished", "failed", "cancelled")
MOST_METHODS = 200
"""So many methods are counted by name, the others together: a dispatcher may run whatever its clients name.

So are those that do not exist: interceptors may answer for them, or refuse them.
"""

MOST_NAMES = 200
"""So many methods, and so many kinds of errors, are told apart in the metrics of a client or a server."""

Method = tuple[str | None, str]
"""A namespace, and a method's name."""


class MethodCounts(dict[Method, list[int]]):
    """By method a list of how often it has finished, failed and was cancelled.

    It is counted by ``counts[method][outcome] += 1``. Any thread may do that: the interpreter does not change to
    another one within such a step.

    Attributes:
        others: the counts of all methods beyond `MOST_METHODS`, and of what is no method.
        refused: how many requests were for a method that does not exist, or may not be called.
    """

    def __init__(self, may_have: Callable[[str | None, str], bool]) -> None:
        """`may_have` says whether there is such a method."""
        super().__init__()
        self._may_have = may_have
        self.others = [0, 0, 0]
        self.refused = 0

    def __missing__(self, method: Method) -> list[int]:
        """The counts of a method that has not ended before."""
        if len(self) >= MOST_METHODS:
            return self.others
        try:
            exists = self._may_have(*method)
        except Exception:  # The access policy is the user's. It has said the same when the method was looked for.
            exists = False
        return self.setdefault(method, [0, 0, 0]) if exists else self.others

    def note_failure(self, method: Method, error: BaseException, *, cancelled: bool) -> bool:
        """Count a request that has ended with an error. Returns False if there was no method that could run."""
        if isinstance(error, NoSuchMethod | UnsupportedVersion | AccessDenied):
            self.refused += 1
            return False
        self[method][CANCELLED if cancelled else FAILED] += 1
        return True


class Names:
    """Names that are told apart, at most `MOST_NAMES`: whoever chooses others must not fill the memory."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def has(self, name: str, is_real: Callable[[], bool] | None = None) -> bool:
        """Whether a name is one of them. One that is new becomes one if it is real, and there is room for it."""
        if name in self._known:
            return True
        if len(self._known) >= MOST_NAMES or (is_real is not None and not is_real()):
            return False
        self._known.add(name)
        return True
