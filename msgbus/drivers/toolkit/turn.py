"""Turn: which thread drives a loop, who would take over, and when the loop's own thread has to."""

from __future__ import annotations

import threading
from threading import get_ident

STAND_BY = 0.005
"""Seconds after which the loop's own thread drives again when others have done so, and none does any more."""
LOOKS = 200
"""After so many looks that found the same thread driving, the loop's own thread looks no more until it is called."""


class Turn:
    """One thread at a time has the turn. Thread-safe.

    Three kinds of threads take it: callers who wait for an answer, workers that wait for requests, and the loop's own
    thread, which stands by while others take turns, and looks every ``STAND_BY`` whether somebody still does.

    Attributes:
        is_mine: this thread has the turn, and does not do something else meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for whoever has the turn; not always released by the thread that took it
        self._owner: int | None = None
        self._away = False  # the owner does something else, and will come back
        self._changing = threading.Lock()  # between an owner that comes back and a thread that takes the turn from it
        self._count = 0  # grows whenever a thread takes the turn, or comes back
        self._waiting: dict[int, threading.Lock] = {}  # by thread
        self._called = threading.Lock()  # released to wake the loop's own thread from standing by
        self._called.acquire()
        self._is_needed = False  # why it was called: it has to take the turn
        self._sleeps = False  # it stands by until it is called

    @property
    def is_mine(self) -> bool:
        return self._owner == get_ident() and not self._away

    @property
    def is_free(self) -> bool:
        """Whether no thread has it."""
        return not self._lock.locked()

    def take(self) -> bool:
        """Take the turn, if it is free."""
        if not self._lock.acquire(blocking=False):
            return False
        self._owner = get_ident()
        self._is_needed = False
        self._count += 1
        return True

    def release(self) -> None:
        """Give it back."""
        self._owner = None
        self._lock.release()
        if self._sleeps:
            self._wake_thread()

    def end(self) -> None:
        """Have no owner: the one that has the turn cannot be woken, and finds out afterwards that it has it no more."""
        self._lock = threading.Lock()
        self._owner = None

    # An owner that does something else

    def go_away(self) -> None:
        """Keep the turn while doing something short. Nothing happens if this thread does not have it."""
        if self._owner == get_ident():
            self._away = True
            if self._sleeps:
                self._wake_thread()

    def come_back(self) -> bool:
        """Have the turn again after `go_away`. False: it was taken away, or never had."""
        if not self._away or self._owner != get_ident():
            return False
        with self._changing:
            if self._owner != get_ident():
                return False
            self._away = False
            self._count += 1
            return True

    def take_away(self) -> bool:
        """Take the turn from an owner that does something else."""
        with self._changing:
            if not self._away:
                return False
            self._away = False
            self._owner = get_ident()
            return True

    # Threads that would take it

    @property
    def is_wanted(self) -> bool:
        """Whether threads wait that would take the turn."""
        return bool(self._waiting)

    def want(self, ready: threading.Lock) -> None:
        """This thread waits for `ready`, and takes the turn if it is woken. `want_no_more` has to follow."""
        self._waiting[get_ident()] = ready

    def want_no_more(self) -> None:
        """This thread does not wait any more."""
        self._waiting.pop(get_ident(), None)

    def offer(self) -> None:
        """Wake one of those that wait, to take the turn: the last that came, since it will wait for longest."""
        while True:
            try:
                _, ready = self._waiting.popitem()
            except KeyError:
                return
            if ready.locked():  # Otherwise it has been woken already, and is about to leave.
                unlock(ready)
                return

    # The loop's own thread

    def call_thread(self) -> None:
        """Have the loop's own thread take the turn, if nobody else does before."""
        self._is_needed = True
        self._wake_thread()

    def _wake_thread(self) -> None:
        unlock(self._called)

    def stand_by(self) -> bool:
        """Sleep until this thread is called, or until nobody has taken a turn for a while.

        Returns:
            whether the owner has been away for too long: then the turn is to be taken from it.
        """
        looks = 0
        while True:
            count = self._count
            if self._called.acquire(timeout=STAND_BY):
                if self._is_needed and self.is_free:
                    return False
            elif self._count != count:
                looks = 0
            elif self.is_free or self._away:
                return self._away
            else:
                looks += 1
            if looks >= LOOKS:
                self._sleeps = True
                if not self.is_free and not self._away:  # Looked at after that was set: who leaves wakes this thread.
                    self._called.acquire()
                self._sleeps = False
                looks = 0


def unlock(lock: threading.Lock) -> None:
    """Release a lock, unless that was done already."""
    try:
        lock.release()
    except RuntimeError:
        pass
