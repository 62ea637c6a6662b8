"""Turn: which thread drives a loop, which ones want to, and when the loop's own thread has to."""

from __future__ import annotations

import threading
from threading import get_ident

STAND_BY = 0.005
"""Seconds after which the loop's own thread drives again if other threads have driven and none does any more."""
CHECKS = 200
"""After so many checks in which the same thread drove, the loop's own thread sleeps until it is woken."""


class Turn:
    """One thread at a time has the turn. Thread-safe.

    Three kinds of threads take it: callers that wait for an answer, workers that wait for requests, and the loop's own
    thread. The latter stands by while others take turns, and checks every 5 ms whether they still do.

    Attributes:
        owner: the thread that has the turn, unless it is away.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while a thread has the turn; another thread may release it
        self.owner: int | None = None
        self._away: int | None = None  # a thread that has the turn, does something short, and will come back
        self._changing = threading.Lock()  # for an owner that comes back while its turn is taken away
        self._count = 0  # grows whenever a thread takes the turn, goes away or comes back
        self._waiting: dict[int, threading.Lock] = {}  # by thread
        self._called = threading.Lock()  # released to wake the loop's own thread
        self._called.acquire()
        self._is_needed = False  # it was woken in order to take the turn
        self._sleeps = False  # it sleeps until it is woken

    @property
    def is_free(self) -> bool:
        """Whether no thread has the turn."""
        return not self._lock.locked()

    def take(self) -> bool:
        """Take the turn, if it is free."""
        if not self._lock.acquire(blocking=False):
            return False
        self.owner = get_ident()
        self._is_needed = False
        self._count += 1
        return True

    def release(self) -> None:
        """Give the turn back."""
        self.owner = None
        self._lock.release()
        if self._sleeps:
            self._wake_thread()

    def end(self) -> None:
        """Take the turn from a thread that cannot be woken. It finds that out when it wakes by itself.

        The loop's own thread, and one that wants the turn, can take it then.
        """
        with self._changing:
            self._lock = threading.Lock()
            self.owner = self._away = None
        self.call_thread()
        self.offer()

    # An owner that is away

    def go_away(self) -> None:
        """Keep the turn while this thread does something short. Without the turn, this does nothing."""
        me = get_ident()
        if self.owner == me:
            self.owner = None
            self._away = me  # Last: from now on it can be taken away.
            self._count += 1  # It has been away for no time yet.
            if self._sleeps:
                self._wake_thread()

    def come_back(self) -> bool:
        """Return from `go_away`. False if the turn was taken away, or this thread never had it."""
        me = get_ident()
        if self._away != me:
            return False
        with self._changing:
            if self._away != me:
                return False
            self._away, self.owner = None, me
            self._count += 1
            return True

    def take_away(self) -> bool:
        """Take the turn from an owner that is away."""
        with self._changing:
            if self._away is None:
                return False
            self._away, self.owner = None, get_ident()
            return True

    # Threads that want the turn

    @property
    def is_wanted(self) -> bool:
        """Whether any thread wants the turn."""
        return bool(self._waiting)

    def want(self, ready: threading.Lock) -> None:
        """This thread waits for `ready`, and takes the turn when it is woken. `want_no_more` has to follow."""
        self._waiting[get_ident()] = ready

    def want_no_more(self) -> None:
        """This thread does not wait any more."""
        self._waiting.pop(get_ident(), None)

    def offer(self) -> None:
        """Wake a thread that wants the turn: the one that came last, because it will probably wait longest."""
        while True:
            try:
                _, ready = self._waiting.popitem()
            except KeyError:
                return
            if ready.locked():  # Otherwise that thread has its answer, and is about to leave.
                unlock(ready)
                return

    # The loop's own thread

    def call_thread(self) -> None:
        """Have the loop's own thread take the turn, unless another one does first."""
        self._is_needed = True
        self._wake_thread()

    def _wake_thread(self) -> None:
        unlock(self._called)

    def stand_by(self) -> bool:
        """Sleep until this thread has to drive: because it was called, or no thread has driven for a while.

        Returns:
            whether the owner has been away for too long, so that the turn has to be taken from it.
        """
        checks = 0
        while True:
            count = self._count
            if self._called.acquire(timeout=STAND_BY):
                if self._is_needed and self.is_free:
                    return False
            elif self._count != count:
                checks = 0
            elif self.is_free or self._away is not None:
                return self._away is not None
            else:
                checks += 1
            if checks >= CHECKS:
                self._sleeps = True
                if not self.is_free and self._away is None:  # Checked after that: an owner that leaves later wakes it.
                    self._called.acquire()
                self._sleeps = False
                checks = 0


def unlock(lock: threading.Lock) -> None:
    """Release a lock, unless that was done already."""
    try:
        lock.release()
    except RuntimeError:
        pass
