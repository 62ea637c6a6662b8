"""Puts off the handlers of signals on the main thread: while it drives a loop, and while it holds a lock."""

from __future__ import annotations

# The same functions as in `signal`, without its conversion to enumerations, which would cost ten times as much. They
# are called for each call of a client.
import _signal  # type: ignore[import-not-found]
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from types import FrameType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

SIGNALS: Sequence[int] = tuple(
    int(number)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGALRM,
        signal.SIGVTALRM,
        signal.SIGPROF,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCHLD,
        signal.SIGWINCH,
    )
)
"""The signals whose handlers are put off: those for which programs have handlers that may raise."""

HolderType = TypeVar("HolderType", bound="Holder")
P = ParamSpec("P")
T = TypeVar("T")


class HeldSignals:
    """While signals are held, each calls `on_signal`, and `release` runs its handler. On the main thread only.

    A handler may raise an exception wherever the main thread is, as that of Ctrl-C does. In the middle of the loop's
    work, that would leave a frame half read.

    Attributes:
        holds: signals are put off.
        pending: the numbers of the signals that came meanwhile.
    """

    def __init__(self, on_signal: Callable[[], None]) -> None:
        """`on_signal` has to make the main thread call `release` soon. It must not raise."""
        self.pending: list[int] = []
        self._on_signal = on_signal
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._found: list[object] = []  # the handlers of all SIGNALS, when `hold` looked at them
        self._numbers: list[int] = []  # those of them that have to be put off
        self._instead = self._note
        self.holds = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.pending.append(number)
        self._on_signal()

    def hold(self) -> None:
        """Put off signals from now on. Earlier ones are handled now; if a handler raises, nothing is held."""
        if self.holds:
            return
        self.holds = True
        try:
            found = list(map(_signal.getsignal, SIGNALS))
            if found != self._found:  # Otherwise they are as they were the last time, as for nearly every call.
                pairs = zip(SIGNALS, found, strict=True)
                to_replace = {n: handler for n, handler in pairs if callable(handler) and handler is not self._instead}
                self._handlers.update(to_replace)
                self._numbers, self._found = list(to_replace), found
            for number in self._numbers:
                _signal.signal(number, self._instead)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Run the handlers that were put off, and put off no more. An exception of a handler is raised."""
        self.holds = False
        try:
            for number, handler in self._handlers.items():
                if _signal.getsignal(number) is self._instead:
                    _signal.signal(number, handler)
            while self.pending:
                number = self.pending[0]
                del self.pending[0]
                self._handlers[number](number, sys._getframe())
        except BaseException:
            self.release()  # The other handlers have to run too.
            raise

    def abandon(self) -> None:
        """In a forked child: the signals were the parent's."""
        self.pending.clear()
        self.release()


class Holder(Protocol):
    """What puts off signals on the main thread, as a loop does."""

    def hold_signals(self) -> bool:
        """See `Loop.hold_signals`."""

    def release_signals(self) -> None:
        """See `Loop.release_signals`."""


def putting_off_signals(
    method: Callable[Concatenate[HolderType, P], T],
) -> Callable[Concatenate[HolderType, P], T]:
    """The same method, during which handlers of signals are put off. For what takes a lock on the main thread.

    In Python 3.14 a handler may run when a ``with`` statement has just acquired a lock: what it raises would leave the
    lock acquired for ever.
    """

    @wraps(method)
    def run(self: HolderType, /, *args: P.args, **kwargs: P.kwargs) -> T:
        holds = self.hold_signals()
        try:
            return method(self, *args, **kwargs)
        finally:
            if holds:
                self.release_signals()

    return run
