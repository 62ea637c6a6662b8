"""The I/O thread of a driver: it calls what has something to read, what is due, and what others hand it."""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from enum import Enum
from typing import Any

from msgbus.drivers.toolkit import descriptors
from msgbus.exceptions import MessagingException, TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

DOZE = 0.001
"""Seconds for which the thread, once it has handed out work, waits for more before it goes to sleep."""


class Rest(Enum):
    """What a loop may do when all there was is done."""

    NONE = 0
    """Go on: there is more."""
    DOZE = 1
    """Wait for a millisecond for more: something is held back so that it can travel with that."""
    SLEEP = 2


_AWAKE, _DOZING, _ASLEEP = range(3)


class Loop:
    """One thread, which is started by the first `call`. Nothing is opened before.

    Whoever hands it something wakes it only if it sleeps, so that a busy thread is handed much at once. For what is not
    urgent (``lazily``) it is not even woken from a doze, which lasts for a millisecond.

    Attributes:
        before_sleep: called when all there was is done, to send what has gathered; with True when a doze is over. It
            says how the thread may rest.
        closed: the thread has ended.
        batch: grows with each batch of what was handed over: all in it was handed over before the batch began.
    """

    def __init__(self, name: str) -> None:
        """Make a loop that does not run yet; `name` is its thread's."""
        self._name = name
        self.before_sleep: Callable[[bool], Rest] = lambda _over: Rest.SLEEP
        self._poll: Any = None
        self._wake = -1
        self._readers: dict[int, Callable[[], None]] = {}
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._last: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._state = _AWAKE
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._robbed = False
        self.closed = False
        self.batch = 0

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's thread."""
        return threading.current_thread() is self._thread

    @property
    def started(self) -> bool:
        """Whether anything was ever asked of it."""
        return self._thread is not None

    def inherited(self) -> list[Future[Any]]:
        """In a forked child: the futures among what was handed over and not run."""
        found = []
        for _, args in self._calls:
            for arg in args:
                future = getattr(arg, "sent", arg)
                if isinstance(future, Future):
                    found.append(future)
        return found

    def call(self, func: Callable[..., Any], *args: Any) -> None:
        """Run a function on the loop's thread, soon. Any thread.

        Raises:
            TransportUnavailable: the operating system gives no thread or descriptor, or has taken one away.
        """
        if self._thread is None:
            self._start()
        if self._robbed:
            raise self._was_robbed(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        self._calls.append((func, args))
        if self._state != _AWAKE:
            self._rouse()

    def call_for(self, future: Future[Any], func: Callable[..., Any], *args: Any) -> None:
        """As `call`, but what it raises is the outcome of `future`."""
        try:
            self.call(func, *args)
        except MessagingException as exc:
            try:
                future.set_exception(exc)
            except InvalidStateError:
                pass

    def call_lazily(self, func: Callable[..., Any], *args: Any) -> None:
        """As `call`, a millisecond later if that saves waking the thread."""
        self._calls.append((func, args))
        if self._state == _ASLEEP:
            self._rouse()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None or self.closed:
                return
            try:
                self._open()
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
            except (OSError, RuntimeError) as exc:
                self._let_go()
                raise TransportUnavailable(descriptors.not_started(self._name, exc)) from exc
            self._thread = thread

    def _open(self) -> None:
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)

    def _let_go(self) -> None:
        if self._poll is not None:
            self._poll.close()
        if self._wake >= 0:
            os.close(self._wake)
        self._poll, self._wake = None, -1

    def _rouse(self) -> None:
        with self._starting:
            if self.closed:
                return
            self._state = _AWAKE
            try:
                os.eventfd_write(self._wake, 1)
            except OSError as exc:
                self._robbed = True
                raise self._was_robbed(exc) from exc

    def _was_robbed(self, exc: OSError) -> TransportUnavailable:
        return TransportUnavailable(descriptors.was_robbed(self._name, exc))

    def call_last(self, func: Callable[..., Any], *args: Any) -> None:
        """Run a function when all else is done, right before the thread sleeps. On the loop's thread.

        That is the moment for waking other threads: they need the interpreter, which is free then.
        """
        self._last.append((func, args))

    def call_later(self, delay: float, func: Callable[[], None]) -> None:
        """Run a function in so many seconds. On the loop's thread."""
        heapq.heappush(self._due, (time.monotonic() + delay, next(self._order), func))

    def watch(self, fd: int, func: Callable[[], None], *, write: bool = False) -> None:
        """Call a function whenever `fd` can be read (or written). On the loop's thread."""
        events = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        if fd in self._readers:
            self._poll.modify(fd, events)
        else:
            self._poll.register(fd, events)
        self._readers[fd] = func

    def unwatch(self, fd: int) -> None:
        """Undo `watch`."""
        if self._readers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def close(self) -> None:
        """End the thread, once it has run all that it was handed, and give the descriptors back."""
        with self._starting:
            thread = self._thread
            self._closing = True
            if thread is None and not self.closed:
                self._drop()
        if thread is not None:
            self._calls.append((_nothing, ()))
            try:
                self._rouse()
            except TransportUnavailable as exc:
                LOG.warning("%s", exc)
                return
            if thread is not threading.current_thread():
                thread.join(5)

    def abandon(self) -> None:
        """In a forked child, which has not got the thread. One of the parent's threads may hold the lock."""
        self._starting = threading.Lock()
        if not self.closed:
            self._drop()

    def _drop(self) -> None:
        self.closed = True
        try:
            self._let_go()
        except OSError as exc:
            LOG.debug("the descriptors of the I/O thread %s were closed by others: %s", self._name, exc)

    def _run(self) -> None:
        try:
            while not (self._closing and not self._calls and not self._last):
                self._turn()
        except OSError as exc:
            LOG.error("%s", self._was_robbed(exc))
            self._robbed = True
        with self._starting:
            self._drop()

    def _turn(self) -> None:
        """Sleep until there is something to do, and do it."""
        rest = self._guard(self.before_sleep, False)
        last = self._last
        while last:
            self._guard(*_flat(last.popleft()))  # No name of this function holds it while the thread sleeps.
        dozing = rest is Rest.DOZE
        self._state = _DOZING if dozing else _ASLEEP
        # Looked at after the state was set: what is appended from now on wakes the thread.
        timeout = 0.0 if self._calls or rest is Rest.NONE else self._timeout(DOZE if dozing else 3600.0)
        events = self._poll.poll(timeout)
        self._state = _AWAKE
        for fd, _ in events:
            if fd == self._wake:
                os.eventfd_read(fd)
            elif (reader := self._readers.get(fd)) is not None:
                self._guard(reader)
        calls = self._calls
        while calls:
            self.batch += 1
            for _ in range(len(calls)):
                func, args = calls.popleft()
                self._guard(func, *args)
        if self._due and self._due[0][0] <= time.monotonic():
            self._run_due()
        if dozing and timeout and not events:
            self._guard(self.before_sleep, True)

    def _timeout(self, longest: float) -> float:
        return min(longest, max(0.0, self._due[0][0] - time.monotonic())) if self._due else longest

    def _run_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            self._guard(heapq.heappop(self._due)[2])

    @staticmethod
    def _guard(func: Callable[..., Any], *args: Any) -> Any:
        try:
            return func(*args)
        except Exception:
            LOG.exception("the I/O thread goes on after an error that is a fault of msgbus")
            return None


def _flat(call: tuple[Callable[..., Any], tuple[Any, ...]]) -> tuple[Any, ...]:
    return (call[0], *call[1])


def _nothing() -> None:
    """Wakes the thread."""
