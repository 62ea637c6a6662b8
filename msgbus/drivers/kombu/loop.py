"""The kombu driver's one I/O thread. What it calls are the connections, `msgbus.drivers.kombu.link`."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgbus.drivers.toolkit import descriptors
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

if TYPE_CHECKING:
    from msgbus.drivers.kombu.link import Link

LOG = get_logger(__name__)

TICK = 1.0
"""Seconds between two looks at heartbeats and at messages that were never confirmed."""


class Loop:
    """The I/O thread, started by the first `call`; nothing is opened before.

    It calls links when their sockets can be read or written, and functions that others hand it.

    Attributes:
        busy: the thread is awake, and will write what is appended to the links before it sleeps. So those whom it wakes
            with what it has read need not write each for itself.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._poll: Any = None
        self._links: dict[int, Link] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_read = self._wake_write = -1
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False
        self.busy = False

    def start(self) -> None:
        """Open what the thread needs, and start it. May be called again.

        Raises:
            TransportUnavailable: the operating system gives no thread or descriptor.
        """
        with self._starting:
            if self._thread is None and not self._closed:
                self._thread = self._start()

    def call(self, func: Callable[[], None]) -> bool:
        """Run `func` on the loop's thread. False: that has ended.

        Raises:
            TransportUnavailable: the operating system gives no thread or descriptor, or has taken one away.
        """
        with self._starting:
            if self._closed:
                return False
            if self._thread is None:
                self._thread = self._start()
            self._calls.append(func)
            try:
                self._wake()
            except OSError as exc:
                raise TransportUnavailable(descriptors.was_robbed(self._name, exc)) from exc
        return True

    def _start(self) -> threading.Thread:
        try:
            self._poll = select.epoll()
            self._wake_read, self._wake_write = os.pipe()
            os.set_blocking(self._wake_write, False)
            self._poll.register(self._wake_read, select.EPOLLIN)
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
        except (OSError, RuntimeError) as exc:
            self._let_go()
            raise TransportUnavailable(descriptors.not_started(self._name, exc)) from exc
        return thread

    def _let_go(self) -> None:
        if self._poll is not None:
            self._poll.close()
        for fd in (self._wake_read, self._wake_write):
            if fd >= 0:
                try:
                    os.close(fd)
                except OSError as exc:
                    LOG.debug("a descriptor of the I/O thread %s was closed by others: %s", self._name, exc)
        self._poll = None
        self._wake_read = self._wake_write = -1

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
                try:
                    self._wake()
                except OSError as exc:
                    LOG.warning("%s", descriptors.was_robbed(self._name, exc))
                    return
        if thread is None:
            self.drop()
        elif thread is not threading.current_thread():
            thread.join(5)

    def abandon(self) -> None:
        """In a forked child, which has none of the threads. One of them may hold the lock."""
        self._starting = threading.Lock()
        self._closed = True
        self._let_go()

    def drop(self) -> None:
        """Give the descriptors back."""
        with self._starting:
            self._let_go()

    def _run(self) -> None:
        try:
            self._serve()
        except OSError as exc:
            LOG.error("%s", descriptors.was_robbed(self._name, exc))
        self.drop()

    def _serve(self) -> None:
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

    def _flush(self) -> None:
        for link in list(self._links.values()):
            self._guard(link.send_all)

    @staticmethod
    def _guard(func: Callable[[], None]) -> None:
        try:
            func()
        except Exception:
            LOG.exception("the I/O thread goes on after an error that is a fault of msgbus")
