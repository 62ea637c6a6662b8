"""SendWindow: bounds how many requests of a transport are unfinished."""

from __future__ import annotations

import threading

from msgbus import forking


class SendWindow:
    """A semaphore that costs next to nothing while it is not exhausted: every request passes through it.

    As a context manager it gives back, at the end, the place that `acquire` took.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.start_clean()

    def start_clean(self) -> None:
        """Have all places free. Also in a forked child, where the parent's threads and their locks do not exist."""
        self._places: list[None] = [None] * self.size  # Taking from and adding to a list are atomic.
        self._waiting = 0
        self._freed = threading.Condition()
        self._closed = False
        self._forks = forking.forks

    @property
    def idle(self) -> bool:
        """Whether nothing is unfinished."""
        return len(self._places) == self.size

    @property
    def used(self) -> int:
        """How many places are taken."""
        return self.size - len(self._places)

    def acquire(self, timeout: float) -> bool:
        """Take a place; wait up to `timeout` seconds for one. Returns whether there was one."""
        try:
            self._places.pop()
        except IndexError:
            return self._wait_for_place(timeout)
        return True

    def _wait_for_place(self, timeout: float) -> bool:
        with self._freed:
            self._waiting += 1
            try:
                return self._freed.wait_for(lambda: self._closed or self.take(), timeout)
            finally:
                self._waiting -= 1

    def release(self, *_exc_info: object) -> None:
        """Give the place back."""
        if len(self._places) < self.size:  # In a forked child it may be one that its parent had taken.
            self._places.append(None)
        # Not in a child that is being forked, before it starts clean: a thread of the parent may hold the lock.
        if self._waiting and self._forks == forking.forks:
            with self._freed:
                self._freed.notify()

    def close(self) -> None:
        """Let all in, from now on: the transport is being closed, so each of them fails at once, and says of what.

        (Only a cast may still be sent.) Otherwise they would wait for streams that nobody reads any more.
        """
        with self._freed:
            self._closed = True
            self._freed.notify_all()

    def __enter__(self) -> SendWindow:
        return self

    __exit__ = release

    def take(self) -> bool:
        """Take a place if there is one."""
        try:
            self._places.pop()
        except IndexError:
            return False
        return True
