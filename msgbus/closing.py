"""What becomes of drivers that nobody closes: their transport is dropped, or the program ends without `cleanup`.

A driver may still have data for its peers: receipts of answers, acknowledgements, closing frames.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from msgbus.drivers.base import Driver
from msgbus.drivers.toolkit.loop import Loop
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child

LOG = get_logger(__name__)

EXIT_TIMEOUT = 2.0
"""Seconds that closing all drivers together may delay the end of the program."""
EXIT_TIMEOUT_MIN = 0.1
"""Seconds that each of them has in any case."""


class Flushed(Protocol):
    """Holds what a driver is still to send."""

    def flush(self) -> None:
        """Wait until it is sent, for a bounded time."""


class OpenDrivers:
    """The drivers of this process that are not closed yet. Thread-safe."""

    def __init__(self) -> None:
        self._open: dict[Driver, None] = {}
        self._flushed_first: weakref.WeakSet[Flushed] = weakref.WeakSet()
        self._closing: dict[Driver, threading.Event] = {}
        self._children_close = False

    def add(self, owner: object, driver: Driver, *end: Callable[[], object]) -> weakref.finalize[Any, Any]:
        """Have a driver closed when its owner is collected by the garbage collector, or the program ends.

        Args:
            owner: the driver must not refer to it.
            driver: to be closed.
            end: further functions to call when the owner was collected.

        Returns:
            a finalizer: when the owner closes the driver itself, detach it, and call `discard` too.
        """
        self._open[driver] = None
        self._close_in_children_of_multiprocessing()
        finalizer = weakref.finalize(owner, self._on_dropped, driver, *end)
        finalizer.atexit = False
        return finalizer

    def flush_first(self, flushed: Flushed) -> None:
        """At the end of the program, flush something before the drivers are closed, if it still exists."""
        self._flushed_first.add(flushed)

    def discard(self, driver: Driver) -> None:
        """The driver is closed."""
        self._open.pop(driver, None)

    def _on_dropped(self, driver: Driver, *end: Callable[[], object]) -> None:
        """Close a driver whose owner was collected.

        The garbage collector calls this at any moment, on a thread that may hold a lock of the driver's or of the
        module `threading`. So nothing is done here but to start a thread, in a way that takes no lock of that module;
        that thread starts another, which the module knows.
        """
        closed = threading.Event()
        closing = threading.Thread(
            target=self._close_dropped, args=(driver, closed, end), name="msgbus-closing", daemon=True
        )
        self._closing[driver] = closed
        try:
            _thread.start_new_thread(closing.start, ())
        except RuntimeError:  # The interpreter is ending, or the operating system gives no thread: `close_all` does it.
            self._closing.pop(driver, None)

    def _close_dropped(self, driver: Driver, closed: threading.Event, end: tuple[Callable[[], object], ...]) -> None:
        for func in (driver.close, *end):
            try:
                func()
            except Exception:  # There is nobody to raise it to.
                LOG.exception("a transport that was dropped without cleanup() was not closed cleanly")
        self._open.pop(driver, None)
        self._closing.pop(driver, None)
        closed.set()

    def close_all(self) -> None:
        """At the end of the program: close what is open, in a time that is bounded for all together."""
        for flushed in list(self._flushed_first):
            flushed.flush()
        end = Loop.now() + EXIT_TIMEOUT
        for driver in list(self._open):
            left = max(EXIT_TIMEOUT_MIN, end - Loop.now())
            closed = self._closing.get(driver)
            try:
                if closed is not None:
                    closed.wait(left)
                else:
                    driver.close_timeout = left
                    driver.close()
            except Exception as exc:  # The others have to be closed too, and a traceback would not help.
                LOG.debug("%s was not closed cleanly at the end of the program: %r", driver.state, exc)
            self._open.pop(driver, None)

    def forget_parents(self) -> None:
        """In a forked child: forget the drivers that the parent's threads were closing."""
        for driver in self._closing:
            self._open.pop(driver, None)
        self._closing = {}
        self._children_close = False
        self._close_in_children_of_multiprocessing()

    def _close_in_children_of_multiprocessing(self) -> None:
        """Have `close_all` called at the end of a child of `multiprocessing`, where `atexit` does nothing.

        Such a child first forgets what it has inherited, and then calls what was registered for after a fork.
        """
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None and not self._children_close:
            self._children_close = True
            util.register_after_fork(self, OpenDrivers._in_child_of_multiprocessing)
            self._in_child_of_multiprocessing()

    def _in_child_of_multiprocessing(self) -> None:
        util: Any = sys.modules["multiprocessing.util"]
        util.Finalize(None, self.close_all, exitpriority=0)


open_drivers = OpenDrivers()


def end_child(error: BaseException | None) -> NoReturn:
    """End a child that was forked inside a method of a server's, and has left that method.

    There is nothing to go back to: the request is the parent's, and the threads around it are not there.

    Args:
        error: what the method raised, or None. It decides on the exit code, as at the end of a program.
    """
    code: object = 0
    if isinstance(error, SystemExit):
        code = error.code
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    open_drivers.close_all()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # It is closed, or was never there.
    os._exit((code or 0) & 0xFF)


call_in_child(open_drivers.forget_parents)
atexit.register(open_drivers.close_all)
