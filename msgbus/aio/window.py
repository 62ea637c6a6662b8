"""AsyncWindow: bounds how many requests of a transport are unfinished, for tasks."""

from __future__ import annotations

from msgbus.aio.waiting import Waiter
from msgbus.drivers.toolkit.loop import Loop
from msgbus.window import SendWindow


class AsyncWindow(SendWindow):
    """A send window in which tasks wait for a place, in the order in which they came."""

    def start_clean(self) -> None:
        """As `SendWindow.start_clean`."""
        super().start_clean()
        self._tasks: dict[Waiter, None] = {}

    async def wait_for_place(self, waiter: Waiter, deadline: float) -> bool:
        """Take a place; wait for one until `deadline`, in seconds of `Loop.now`. Returns whether there was one."""
        while not self.take():
            if Loop.now() >= deadline:
                return False
            self._tasks[waiter] = None
            try:
                if not self._places:  # Checked after that: whoever gives one back from now on wakes the first task.
                    await waiter.wait(deadline)
            except BaseException:
                self._wake_next()  # This task may have been woken for a place that it does not take.
                raise
            finally:
                self._tasks.pop(waiter, None)
        return True

    def release(self, *_exc_info: object) -> None:
        """Give the place back. Any thread."""
        super().release()
        self._wake_next()

    __exit__ = release

    def _wake_next(self) -> None:
        while self._tasks and self._places:
            try:
                waiter = next(iter(self._tasks))
                del self._tasks[waiter]
            except (KeyError, RuntimeError, StopIteration):
                continue  # Another thread was faster.
            waiter.wake()
            return
