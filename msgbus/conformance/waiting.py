"""Waiting for conditions, with a deadline: the suite never relies on a sleep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, seconds: float = 15.0) -> T:
    """Return the first true value of `condition`.

    Raises:
        AssertionError: there was none within `seconds`. The text has `what`, and the last value.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}; it is {value!r}")
        time.sleep(0.005)
    return value


class Task:
    """A function that runs on a thread of its own.

    Attributes:
        seconds: how long it took, once it is done.
    """

    def __init__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.seconds = 0.0
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(func, args, kwargs), name="check", daemon=True)
        self._thread.start()

    def _run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        start = time.monotonic()
        try:
            self._value = func(*args, **kwargs)
        except BaseException as exc:  # for the thread of the test
            self._error = exc
        self.seconds = time.monotonic() - start

    @property
    def done(self) -> bool:
        """Whether it has returned or raised."""
        return not self._thread.is_alive()

    def join(self, seconds: float = 30.0) -> None:
        """Wait for the end.

        Raises:
            AssertionError: it still runs after `seconds`.
        """
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"it still runs after {seconds:g} s"

    def result(self, seconds: float = 30.0) -> Any:
        """What it returned; raises what it raised."""
        self.join(seconds)
        if self._error is not None:
            raise self._error
        return self._value

    def error(self, seconds: float = 30.0) -> BaseException | None:
        """What it raised, or None."""
        self.join(seconds)
        return self._error


def gather(tasks: list[Task], seconds: float = 60.0) -> list[Any]:
    """The results of all tasks."""
    end = time.monotonic() + seconds
    return [task.result(max(0.1, end - time.monotonic())) for task in tasks]
