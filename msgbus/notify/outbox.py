"""Outbox: sends log records as notifications on a thread of its own, so that those who log need not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from queue import SimpleQueue

from msgbus.closing import open_drivers
from msgbus.drivers.toolkit.loop import Loop
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child

LOG = get_logger(__name__)

LIMIT = 1000
"""How many records may wait in an outbox."""
SECONDS = 5.0
"""How long `flush` and `wait` may take; and the least time between two lines of the log about dropped records."""

is_sending: ContextVar[bool] = ContextVar("msgbus_outbox", default=False)
"""Whether a record is being sent here: what is logged meanwhile is not sent too."""


class Outbox:
    """Sends records one by one, in order, on a thread that the first record starts. Thread-safe.

    It is flushed at the end of the program, before transports are closed. In a forked child it is empty: the parent
    sends what was in it.
    """

    def __init__(self) -> None:
        self._closed = False
        self._start_clean()
        call_in_child(self._start_clean)
        open_drivers.flush_first(self)

    def _start_clean(self) -> None:
        # A queue without locks: the handler of a signal may log something while `put` runs.
        self._queue: SimpleQueue[Callable[[], object] | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._dropped = 0
        self._reported = 0
        self._reported_at = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether anything was put into it in this process."""
        return self._thread is not None

    def put(self, send: Callable[[], object]) -> None:
        """Have `send` called soon. It is dropped if too many wait, or if this is closed. Never waits.

        Raises:
            RuntimeError: no thread can be started.
        """
        if self._closed:
            return
        if self._queue.qsize() >= LIMIT:
            self._dropped += 1
            return
        if self._thread is None:
            self._start()
        self._queue.put(send)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="msgbus-outbox", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            raise

    def _run(self) -> None:
        is_sending.set(True)
        left = 0
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif self._closed:
                left += 1
            else:
                self._send(item)
        self._report()
        if left:
            LOG.warning("%d log records were not sent as notifications: their handler was closed before", left)

    def _send(self, send: Callable[[], object]) -> None:
        try:
            send()
        except Exception as exc:  # The next record may fare better.
            LOG.error("a log record was not sent as a notification: %r", exc)
        if self._queue.empty() or Loop.now() - self._reported_at >= SECONDS:
            self._report()

    def _report(self) -> None:
        """Say in the log how many were dropped since the last time."""
        count = self._dropped - self._reported
        if count:
            self._reported += count
            self._reported_at = Loop.now()
            LOG.warning("%d log records were not sent as notifications: %d were waiting already", count, LIMIT)

    def flush(self) -> None:
        """Wait until all is sent that was put into it before, or for 5 seconds. Any thread but its own."""
        if self._thread is not None and not self._closed:
            sent = threading.Event()
            self._queue.put(sent)
            sent.wait(SECONDS)

    def close(self) -> None:
        """Flush it, and drop what is not sent then. `wait` has to follow. Idempotent."""
        self.flush()
        if not self._closed:
            self._closed = True
            self._queue.put(None)

    def wait(self) -> None:
        """Wait until its thread has ended, or for 5 seconds. The transport is closed: nothing is being sent."""
        if self._thread is not None:
            self._thread.join(SECONDS)
