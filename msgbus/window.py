"""SendWindow: bounds how many requests of a transport are unfinished."""

from __future__ import annotations

import threading
from collections import deque

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
        self._waiters: deque[threading.Lock] = deque()
        self._changing = threading.RLock()  # A handler of a signal may send, while this thread holds it.
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
        """Take a place; wait up to `timeout` seconds for one. Returns whether there was one.

        Those that wait get places in the order in which they came: a thread that takes one place after another would
        otherwise leave none to the others.
        """
        if not self._waiters:
            try:
                self._places.pop()
            except IndexError:
                pass
            else:
                return True
        return self._wait_for_place(timeout)

    def _wait_for_place(self, timeout: float) -> bool:
        given = threading.Lock()  # released when a place is given to this thread
        given.acquire()
        try:
            with self._changing:
                self._waiters.append(given)
                # After that: whoever gives a place back from now on sees that a thread waits.
                self._give_places_to_waiters()
            if given.acquire(timeout=max(timeout, 0.0)):
                return True
        except BaseException:  # A handler of a signal has raised it.
            if not self._leave(given):
                self.release()
            raise
        return not self._leave(given)

    def _leave(self, given: threading.Lock) -> bool:
        """Wait no longer. False: a place was given just now."""
        with self._changing:
            try:
                self._waiters.remove(given)
            except ValueError:
                return False
        return True

    def _give_places_to_waiters(self) -> None:
        """Give what is free to those that wait. The lock is held."""
        while self._waiters and (self._closed or self.take()):
            try:
                given = self._waiters.popleft()
            except IndexError:  # A handler of a signal has come here in between.
                self.release()
                return
            given.release()

    def release(self, *_exc_info: object) -> None:
        """Give the place back."""
        if len(self._places) < self.size:  # In a forked child it may be one that its parent had taken.
            self._places.append(None)
        # Not in a child that is being forked, before it starts clean: a thread of the parent may hold the lock.
        if self._waiters and self._forks == forking.forks:
            with self._changing:
                self._give_places_to_waiters()

    def close(self) -> None:
        """Let all in, from now on: the transport is being closed, so each of them fails at once, and says of what.

        (Only a cast may still be sent.) Otherwise they would wait for streams that nobody reads any more.
        """
        with self._changing:
            self._closed = True
            self._give_places_to_waiters()

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
