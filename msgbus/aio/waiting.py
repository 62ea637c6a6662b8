"""Waiter: what a task waits with. Deadlines: ends the waits whose time is over. And a thread for what may block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextvars import copy_context
from threading import get_ident
from typing import Any, TypeVar

from msgbus.drivers.toolkit.hosted import HostedLoop
from msgbus.drivers.toolkit.steps import FOREVER

GRAIN = 0.02
"""Seconds by which the end of a wait may be late. All waits that end within so many seconds share a timer."""


HORIZON = 60.0
"""Seconds. What waits for longer is woken by then, and waits again: so there are never many timers."""

T = TypeVar("T")


class Deadlines:
    """The waits of all tasks by their ends. A timer for each would cost more than the call that waits."""

    def __init__(self, loop: HostedLoop) -> None:
        """Use the timers of `loop`."""
        self.loop = loop
        self._waits: dict[int, dict[Waiter, None]] = {}  # by the number of the grain in which they end

    def add(self, waiter: Waiter, until: float) -> dict[Waiter, None]:
        """Have a waiter woken at `until`, in seconds of `Loop.now`, or earlier if that is far away.

        Returns:
            what it may be removed from before.
        """
        if until == FOREVER:
            return {}
        now = self.loop.now()
        if until - now > HORIZON:
            until = now + HORIZON
        number = int(until / GRAIN) + 1
        waits = self._waits.get(number)
        if waits is None:
            # Once that loop has ended, which runs no timers then, there may still be something to wait for.
            later = self.loop.host.call_later if self.loop.closed else self.loop.call_later
            later(max(0.0, number * GRAIN - now), self._on_due, number)
            waits = self._waits[number] = {}
        waits[waiter] = None
        return waits

    def wake_all(self) -> None:
        """Have all waiters look again: the loop has ended, and its timers with it. On the event loop."""
        for number in list(self._waits):
            self._on_due(number)

    def _on_due(self, number: int) -> None:
        for waiter in self._waits.pop(number, ()):
            waiter.wake()


class Waiter:
    """One task waits with it, again and again. Any thread may wake it: if nobody waits, the next wait ends at once."""

    __slots__ = ("_deadlines", "_future", "_woken")

    def __init__(self, deadlines: Deadlines) -> None:
        """One whose waits end by `deadlines`."""
        self._deadlines = deadlines
        self._future: asyncio.Future[None] | None = None
        self._woken = False

    async def wait(self, until: float) -> None:
        """Wait to be woken, but not beyond `until`, in seconds of `Loop.now`. It may also end early."""
        if not self._woken:
            deadlines = self._deadlines
            self._future = future = deadlines.loop.host.create_future()
            waits = deadlines.add(self, until)
            try:
                await future
            finally:
                self._future = None
                waits.pop(self, None)
        self._woken = False

    def wake(self) -> None:
        """End the wait. Any thread."""
        loop = self._deadlines.loop
        if get_ident() == loop.host_thread:
            self._wake()
        elif not loop.call(self._wake):
            with contextlib.suppress(RuntimeError):  # Otherwise the event loop has been closed too.
                loop.host.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._woken = True
        future = self._future
        # If the program has closed its event loop, nobody waits any more.
        if future is not None and not future.done() and not self._deadlines.loop.host.is_closed():
            future.set_result(None)


def run_in_thread(func: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Call a function that may block on a thread of its own. Returns a future for its value.

    Not on one of `asyncio.to_thread`: the program may have filled all of those with what waits for this.
    """
    host = asyncio.get_running_loop()
    done: asyncio.Future[T] = host.create_future()

    def run() -> None:
        outcome: tuple[Callable[[Any], None], Any]
        try:
            outcome = done.set_result, func()
        except BaseException as exc:
            outcome = done.set_exception, exc
        try:
            host.call_soon_threadsafe(finish, *outcome)
        except RuntimeError:
            pass  # The event loop was closed, and nobody waits any more.

    def finish(set_outcome: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_outcome(value)

    threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True).start()
    return done


async def wait_in_any_case(future: asyncio.Future[T]) -> T:
    """Wait for a future, and return its value, even if this task is cancelled meanwhile.

    Only for what must not be left half done, and takes a bounded time.
    """
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    return future.result()
