"""What every driver with a loop does in the same way: close once, wait for that, and fail what is unfinished."""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from typing import Any

from msgbus.drivers.base import Driver
from msgbus.drivers.toolkit.futures import fail, fail_inherited, failed
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import CallCancelled
from msgbus.forking import call_in_child


class DriverShell(Driver):
    """Closing and forking, for a driver that works on a loop.

    Attributes:
        loop: the transport's.
    """

    def __init__(self, loop: Loop) -> None:
        """To be called by the driver's own constructor, when what `_start_clean` needs is there."""
        self.loop = loop
        self._closed = False
        self._start_clean()
        call_in_child(self._forked)

    def _start_clean(self) -> None:
        """Start without connections: at the beginning, and in a forked child."""
        self._closing = threading.Lock()
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()

    @abstractmethod
    def was_closed(self) -> CallCancelled:
        """The error for calls after the driver was closed."""

    def ask(self, func: Callable[..., None], *args: Any) -> Future[Any]:
        """Call a function on the loop's thread. Any thread.

        Returns:
            a future, which the function is given as its last argument, and has to finish. It fails when the driver is
            closed, and in a forked child.
        """
        if self._closed:
            return failed(self.was_closed())
        future: Future[Any] = Future()
        self._futures.add(future)
        self.loop.call_for(future, func, *args, future)
        return future

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        error = self.was_closed()
        if self.loop.started:
            self._disconnect(error, self.loop.now() + self.close_timeout)
        self._fail_unfinished(error)
        for future in list(self._futures):
            fail(future, error)

    @abstractmethod
    def _disconnect(self, error: CallCancelled, deadline: float) -> None:
        """Wait for what is being sent until the deadline, and end all connections."""

    def _fail_unfinished(self, error: CallCancelled) -> None:
        """Fail what is unfinished besides the futures of `ask`."""

    def _wait(self, futures: Sequence[Future[Any]], until: float) -> None:
        """Wait, except on the loop's own thread, which has to run to finish any of them."""
        if not self.loop.is_here:
            wait(futures, max(0.0, until - self.loop.now()))

    def _wait_for(self, until: float, func: Callable[..., None], *args: Any) -> Any:
        """Call a function as `ask` does, while closing, and wait. Returns its result, or None."""
        future: Future[Any] = Future()
        self.loop.call_for(future, func, *args, future)
        self._wait([future], until)
        return future.result() if future.done() and future.exception() is None else None

    def _forked(self) -> None:
        """In a forked child: the connections are the parent's."""
        futures = [*self._futures, *self._abandon()]
        self._start_clean()
        for future in futures:
            fail_inherited(future)

    @abstractmethod
    def _abandon(self) -> Iterable[Future[Any]]:
        """In a forked child: drop the parent's connections without closing them.

        Returns:
            the futures, besides those of `ask`, that only the parent can finish.
        """
