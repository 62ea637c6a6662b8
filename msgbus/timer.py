"""Timer: runs functions later, on one thread that exists only once something was asked of it."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)


class Timer:
    """Runs functions after a delay. They must not block. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def call_later(self, delay: float, func: Callable[[], object]) -> None:
        """Run `func` in `delay` seconds, unless the timer is closed before.

        Raises:
            TransportUnavailable: the operating system gives no thread, or the interpreter is ending.
        """
        entry = (time.monotonic() + delay, next(self._order), func)
        with self._changed:
            if self._closed:
                return
            heapq.heappush(self._due, entry)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as exc:
                    self._due.remove(entry)
                    heapq.heapify(self._due)
                    raise TransportUnavailable(f"the thread {self._name} cannot be started: {exc}") from exc
                self._thread = thread
            elif self._due[0] is entry:
                self._changed.notify()

    def close(self) -> None:
        """Forget what is due, and end the thread."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed:
                    wait = self._due[0][0] - time.monotonic() if self._due else None
                    if wait is not None and wait <= 0:
                        break
                    self._changed.wait(None if wait is None else min(wait, threading.TIMEOUT_MAX))
                if self._closed:
                    return
                func = heapq.heappop(self._due)[2]
            try:
                func()
            except BaseException:  # Without its thread nothing would be done in time any more.
                LOG.exception("a timer's function failed")
            del func  # What it refers to must not live until the next one is due.
