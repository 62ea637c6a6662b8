"""Executor: a server's worker threads."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

LOG = logging.getLogger(__name__)

T = TypeVar("T")


class _Worker(Generic[T]):
    __slots__ = ("item", "thread", "wake")

    def __init__(self) -> None:
        self.item: T | None = None
        self.wake = threading.Lock()
        self.wake.acquire()
        self.thread: threading.Thread


class Executor(Generic[T]):
    """Runs `func` on each submitted item, on up to `size` threads.

    A thread is started only when all others are busy, and the one that became idle last is woken first, so that no
    more threads are awake than there is work for: waking many costs more than a short handler does.
    """

    def __init__(self, size: int, func: Callable[[T], None], name: str) -> None:
        self._size = size
        self._func = func
        self._name = name
        self._idle: list[_Worker[T]] = []
        self._backlog: deque[T] = deque()
        self._workers: list[_Worker[T]] = []
        self._starting = threading.Lock()
        self._closed = False

    def submit(self, item: T) -> None:
        """Have `item` run, or queue it while all threads are busy. Never blocks."""
        try:
            # Taking from the list is atomic: whoever got the worker may hand it an item.
            worker = self._idle.pop()
        except IndexError:
            if len(self._workers) < self._size and self._start(item):
                return
            self._backlog.append(item)
            # A worker may have looked at the backlog just before; then it is idle by now.
            self._rouse()
            return
        worker.item = item
        worker.wake.release()

    def take_backlog(self) -> list[T]:
        """Take out what no thread has begun."""
        taken: list[T] = []
        while True:
            try:
                taken.append(self._backlog.popleft())
            except IndexError:
                return taken

    def close(self, timeout: float | None) -> int:
        """Let the threads end once they have run all that was submitted.

        Args:
            timeout: seconds to wait for them; None for as long as it takes.

        Returns:
            how many are still running then.
        """
        self._closed = True
        while True:
            try:
                self._idle.pop().wake.release()
            except IndexError:
                break
        end = None if timeout is None else time.monotonic() + timeout
        with self._starting:
            workers = list(self._workers)
        for worker in workers:
            if worker.thread is not threading.current_thread():
                worker.thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return sum(worker.thread.is_alive() for worker in workers)

    def _start(self, item: T) -> bool:
        with self._starting:
            if len(self._workers) >= self._size:
                return False
            worker: _Worker[T] = _Worker()
            worker.item = item
            worker.thread = threading.Thread(
                target=self._work, args=(worker,), name=f"{self._name}-{len(self._workers)}", daemon=True
            )
            self._workers.append(worker)
        worker.thread.start()
        return True

    def _rouse(self) -> None:
        try:
            worker = self._idle.pop()
        except IndexError:
            return
        worker.wake.release()

    def _work(self, worker: _Worker[T]) -> None:
        while True:
            item, worker.item = worker.item, None
            if item is not None:
                try:
                    self._func(item)
                except Exception:
                    LOG.exception("a worker's item failed")
                del item  # It must not live until the next one comes.
            try:
                worker.item = self._backlog.popleft()
                continue
            except IndexError:
                if self._closed:
                    return
                self._idle.append(worker)
            # Between the two looks an item may have been queued, or the executor closed: nobody would wake us then.
            if self._backlog or self._closed:
                self._rouse()
            worker.wake.acquire()
