"""Poller: a loop sleeps in it, until a watched descriptor is ready, its time is over, or another thread wakes it."""

from __future__ import annotations

import copy
import os
import select
import threading
from collections.abc import Callable

_inherited: list[object] = []
"""Kept and never used: their numbers may belong to other files by now, which must not be closed."""


class Poller:
    """An epoll object and an eventfd.

    Other code may close both, as libraries do that turn the process into a daemon. Then nothing can be read or written
    any more, and the poller only sleeps and is woken, so that calls and timers still run.

    Attributes:
        functions: what to call for each watched descriptor.
        lost: the error that showed that its descriptors were closed, or None.
        polls: a thread may be where only its descriptors wake it.
    """

    def __init__(self) -> None:
        """Open both.

        Raises:
            OSError: there are no descriptors left.
        """
        self.lost: OSError | None = None
        self.functions: dict[int, Callable[[], None]] = {}
        self._woken = threading.Event()
        self.polls = False
        self._epoll = select.epoll()
        try:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._epoll.register(self._wake, select.EPOLLIN)
        except OSError:
            self._epoll.close()
            raise

    def fileno(self) -> int:
        """A descriptor that can be read when a watched one is ready, or somebody has called `wake`."""
        return self._epoll.fileno()

    def watch(self, fd: int, func: Callable[[], None], write: bool) -> None:
        """See `Loop.watch`."""
        if self.lost is not None:
            return
        events = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        if fd in self.functions:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self.functions[fd] = func

    def unwatch(self, fd: int) -> None:
        """See `Loop.unwatch`."""
        if self.functions.pop(fd, None) is not None and self.lost is None:
            self._epoll.unregister(fd)

    def sleep(self, timeout: float) -> list[tuple[int, int]]:
        """Sleep until there is something to do, for at most so many seconds (-1: for as long as it takes).

        Returns:
            the watched descriptors that can be read or written, each with its events.
        """
        if self.lost is None:
            self.polls = True
            try:
                # Checked after that, as `wake` checks `polls` after it has set `lost`: one of the two threads notices.
                if self.lost is None:
                    ready = self._epoll.poll(timeout)
                    for entry in ready:
                        if entry[0] == self._wake:
                            ready.remove(entry)
                            os.eventfd_read(self._wake)
                            break
                    return ready
            except OSError as exc:
                self.lost = exc
                return []
            finally:
                self.polls = False
        self._woken.wait(None if timeout < 0 else timeout)
        self._woken.clear()
        return []

    def wake(self) -> None:
        """End `sleep`, or the next one. Any thread.

        Raises:
            OSError: its descriptors have been closed while a thread slept, which cannot be woken.
        """
        if self.lost is None:
            try:
                os.eventfd_write(self._wake, 1)
                return
            except OSError as exc:
                self.lost = exc
        self._woken.set()
        if self.polls:
            raise self.lost

    def replacement(self) -> Poller:
        """One in which other threads sleep and are woken, when `wake` has raised: one is still in this poller."""
        new = copy.copy(self)
        new._woken = threading.Event()
        new.polls = False
        return new

    def close(self) -> None:
        """Give the descriptors back; what was watched is not closed."""
        if self.lost is not None:
            _inherited.append(self._epoll)
            return
        self._epoll.close()
        os.close(self._wake)

    def abandon(self) -> None:
        """In a forked child: give back the copies of the descriptors, and keep alive what was watched.

        To let go of a library's socket may be to close the parent's connection.
        """
        _inherited.append(self.functions)
        self.close()
