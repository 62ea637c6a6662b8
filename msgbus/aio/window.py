"""AsyncWindow: bounds how many requests of a transport are unfinished, for tasks."""

from __future__ import annotations

from threading import get_ident

from msgbus.aio.waiting import Waiter
from msgbus.drivers.toolkit.hosted import HostedLoop
from msgbus.drivers.toolkit.loop import Loop
from msgbus.window import SendWindow


class AsyncWindow(SendWindow):
    """A send window in which tasks get places in the order in which they came.

    A place that becomes free is given to the first task that waits, even before it runs: a task that takes one place
    after another would otherwise leave none to the others.
    """

    def __init__(self, size: int, loop: HostedLoop) -> None:
        """One with so many places; tasks wait for them on the event loop of `loop`."""
        self._loop = loop
        super().__init__(size)

    def start_clean(self) -> None:
        """As `SendWindow.start_clean`."""
        super().start_clean()
        self._tasks: dict[Waiter, None] = {}  # Only changed on the event loop's thread.
        self._given: set[Waiter] = set()  # likewise: those that have a place, and do not know yet

    async def wait_for_place(self, waiter: Waiter, deadline: float) -> bool:
        """Take a place; wait for one until `deadline`, in seconds of `Loop.now`. Returns whether there was one."""
        self._tasks[waiter] = None
        # After that: whoever gives a place back from now on sees that a task waits.
        self._give_places()
        try:
            while waiter in self._tasks and Loop.now() < deadline:
                await waiter.wait(deadline)
        except BaseException:
            if waiter in self._given:
                self._given.remove(waiter)
                self.release()
            raise
        finally:
            self._tasks.pop(waiter, None)
        if waiter not in self._given:
            return False
        self._given.remove(waiter)
        return True

    def release(self, *_exc_info: object) -> None:
        """Give the place back. Any thread."""
        super().release()
        if self._tasks:
            if get_ident() == self._loop.host_thread:
                self._give_places()
            else:
                self._loop.call(self._give_places)

    __exit__ = release

    def close(self) -> None:
        """As `SendWindow.close`. On the event loop's thread."""
        self._closed = True
        self._give_places()

    def _give_places(self) -> None:
        """Give free places to tasks. On the event loop's thread."""
        while self._tasks and (self._closed or self.take()):
            waiter = next(iter(self._tasks))
            del self._tasks[waiter]
            self._given.add(waiter)
            waiter.wake()
