"""The kombu driver's one I/O thread. What it calls are the connections, `msgbus.drivers.kombu_link`."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgbus.drivers.loop import cannot_start
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

if TYPE_CHECKING:
    from msgbus.drivers.kombu_link import Link

LOG = get_logger(__name__)

TICK = 1.0
"""Seconds between two looks at heartbeats and at messages that were never confirmed."""


class Loop:
    """The I/O thread: calls links when their sockets can be read or written, and functions that others hand it.

    Attributes:
        busy: the thread is awake, and will write what is appended to the links before it sleeps. So those whom it wakes
            with what it has read need not write each for itself.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # Opened by `start`.
        self._poll: select.epoll
        self._wake_read = self._wake_write = -1
        self._links: dict[int, Link] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False
        self.busy = False

    def start(self) -> None:
        """Open what the thread needs, and start it. May be called again.

        Raises:
            TransportUnavailable: the thread, or a descriptor that it needs, cannot be had.
        """
        with self._starting:
            if self._thread is not None or self._closed:
                return
            try:
                if self._wake_read < 0:
                    self._poll = select.epoll()
                    self._wake_read, self._wake_write = os.pipe()
                    os.set_blocking(self._wake_write, False)
                    self._poll.register(self._wake_read, select.EPOLLIN)
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
            except (OSError, RuntimeError) as exc:
                raise TransportUnavailable(cannot_start(self._name, exc)) from exc
            self._thread = thread

    def call(self, func: Callable[[], None]) -> bool:
        """Run `func` on the loop's thread. False: that has ended.

        Raises:
            TransportUnavailable: the first call could not start the thread; `func` is not run.
        """
        if self._thread is None:
            self.start()
        self._calls.append(func)
        with self._starting:
            if self._closed:
                return False
            self._wake()
        return True

    def _wake(self) -> None:
        """The lock is held: nobody closes the pipe meanwhile."""
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # The pipe is full of wake-ups that were not read yet.

    def watch(self, fd: int, link: Link, *, write: bool = False) -> None:
        """Call `link` when `fd` can be read (and written)."""
        events = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        if fd in self._links:
            self._poll.modify(fd, events)
        else:
            self._links[fd] = link
            self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Undo `watch`."""
        if self._links.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def close(self) -> None:
        """End the thread and give the descriptors back."""
        with self._starting:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            if thread is not None:
                self._wake()
        if thread is None:
            self.drop()
        elif thread is not threading.current_thread():
            thread.join(5)

    def abandon(self) -> None:
        """In a forked child, which has none of the threads."""
        self._closed = True
        self._drop()

    def drop(self) -> None:
        """Give the descriptors back."""
        with self._starting:
            self._drop()

    def _drop(self) -> None:
        if self._wake_read >= 0:
            self._poll.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = -1  # Once is enough: their numbers may be others' now.

    def _run(self) -> None:
        next_tick = time.monotonic() + TICK
        while not self._closed:
            self._flush()
            self.busy = False
            self._flush()  # Once more: nobody else has written what came up to here.
            events = self._poll.poll(max(0.0, next_tick - time.monotonic()))
            self.busy = True
            for fd, event in events:
                if fd == self._wake_read:
                    os.read(fd, 4096)
                elif (link := self._links.get(fd)) is not None:
                    self._guard(lambda link=link, event=event: link.on_event(event))  # type: ignore[misc]
            while self._calls:
                self._guard(self._calls.popleft())
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK
                for link in list(self._links.values()):
                    self._guard(link.on_tick)
        self.drop()

    def _flush(self) -> None:
        for link in list(self._links.values()):
            self._guard(link.send_all)

    @staticmethod
    def _guard(func: Callable[[], None]) -> None:
        try:
            func()
        except Exception:
            LOG.exception("the I/O thread goes on after an error that is a fault of msgbus")
