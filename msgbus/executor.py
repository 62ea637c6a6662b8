"""Executor: a server's worker threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from msgbus.drivers.toolkit.loop import Loop
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

T = TypeVar("T")


class _Worker:
    __slots__ = ("thread", "wake")

    def __init__(self) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.thread: threading.Thread


EAGER = 4
"""Threads up to this number are woken immediately when there is work."""
QUICK = 0.005
"""Seconds; items that take less on average are not worth more threads."""
MAX_WAIT = 0.02
"""Seconds that a quick item may wait before it gets another thread all the same."""

START_AGAIN = 1.0
"""Seconds until the next try after the operating system has refused a thread."""


class Executor(Generic[T]):
    """Runs `func` on each submitted item, on up to `size` threads.

    Waking a thread costs more than a short handler does, and threads that compete for the interpreter cost more again.
    So while items are quick, a few threads run them one after another; if one of them gets stuck, or if items are slow,
    each item gets a thread.
    """

    def __init__(
        self, size: int, func: Callable[[T], None], name: str, call_later: Callable[[float, Callable[[], None]], None]
    ) -> None:
        """`call_later` runs a function in a number of seconds, on another thread."""
        self._size = size
        self._func = func
        self._name = name
        self._call_later = call_later
        self._idle: list[_Worker] = []
        self._backlog: deque[tuple[float, T]] = deque()  # with the time since when each waits
        self._workers: list[_Worker] = []
        self._starting = threading.Lock()
        self._average = 0.0
        self._watching = False
        self._closed = False
        self._next_start = 0.0

    def submit(self, item: T) -> None:
        """Have `item` run, as soon as there is a thread for it. Never blocks."""
        self._backlog.append((Loop.now(), item))
        if len(self._workers) - len(self._idle) < EAGER or self._average > QUICK:
            self._wake_or_start()
        elif not self._watching:
            self._watching = True
            self._call_later(MAX_WAIT, self._watch)

    def _watch(self) -> None:
        """Give more threads to what has waited too long."""
        now = Loop.now()
        for since, _ in list(self._backlog):
            if now - since < MAX_WAIT:
                break
            self._wake_or_start()
        self._watching = False
        # If all threads are busy and there may be no more of them, the next one that is free takes the backlog.
        if self._backlog and not self._watching and (self._idle or len(self._workers) < self._size):
            self._watching = True
            self._call_later(MAX_WAIT, self._watch)

    def take_backlog(self) -> list[T]:
        """Remove and return the items that no thread has begun."""
        taken: list[T] = []
        while True:
            try:
                taken.append(self._backlog.popleft()[1])
            except IndexError:
                return taken

    def close(self, timeout: float | None) -> int:
        """Let the threads end once they have run all that was submitted.

        Args:
            timeout: seconds to wait for them; None for as long as it takes.

        Returns:
            how many are still running then, besides the one that calls this.
        """
        self._closed = True
        while self._wake():
            pass
        end = None if timeout is None else Loop.now() + timeout
        with self._starting:
            workers = [worker for worker in self._workers if worker.thread is not threading.current_thread()]
        for worker in workers:
            worker.thread.join(None if end is None else max(0.0, end - Loop.now()))
        return sum(worker.thread.is_alive() for worker in workers)

    def _wake_or_start(self) -> None:
        """Wake the thread that became idle last, or start one."""
        if not self._wake() and len(self._workers) < self._size and Loop.now() >= self._next_start:
            self._start()

    def _wake(self) -> bool:
        try:
            self._idle.pop().wake.release()  # Taking from the list is atomic: each is woken once.
        except IndexError:
            return False
        return True

    def _start(self) -> None:
        with self._starting:
            if len(self._workers) >= self._size:
                return
            worker = _Worker()
            name = f"{self._name}-{len(self._workers)}"
            worker.thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
            try:
                worker.thread.start()  # Under the lock: `close` joins what it finds, which has to have been started.
            except RuntimeError as exc:  # The operating system refuses more threads; the backlog is tried again later.
                LOG.error("no thread can be started for %s: %s; it is tried again", self._name, exc)
                self._next_start = Loop.now() + START_AGAIN
                if not self._watching:
                    self._watching = True
                    self._call_later(START_AGAIN, self._watch)
                return
            self._workers.append(worker)

    def _work(self, worker: _Worker) -> None:
        while True:
            try:
                _, item = self._backlog.popleft()
            except IndexError:
                if self._closed:
                    return
                self._idle.append(worker)
                # An item may have been submitted, or `close` called, just before this thread was idle: then nothing
                # wakes it. If no thread is idle any more, this one has just been woken.
                if self._backlog or self._closed:
                    self._wake()
                worker.wake.acquire()
                continue
            began = Loop.now()
            try:
                self._func(item)
            except BaseException:  # A handler's sys.exit() too: it must not cost the server a thread.
                LOG.exception("an item of a worker thread raised")
            self._average += (Loop.now() - began - self._average) / 16
            del item  # It must not live until the next one comes.
