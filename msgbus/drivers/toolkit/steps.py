"""Steps: what a loop has to do. One thread at a time does it, step by step."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from msgbus.drivers.toolkit.poller import Poller
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

LINGER = 0.001
"""Seconds that the thread may wait for more work before it goes to sleep."""
ROUNDS = 10
"""How many batches of calls are run, each made by the one before, before the loop looks at descriptors again."""
LONGEST_SLEEP = 86400.0
"""Seconds for which the loop sleeps at once: the kernel's clock for that ends after 24 days."""
FOREVER = float("inf")

Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Steps(ABC):
    """Calls, timers and descriptors, and the step that runs them. Which thread does the steps, `Driving` decides.

    Attributes:
        before_sleep: called when all work is done, to write what has gathered; with True when lingering has brought no
            work. It returns how many seconds the thread may wait for more: 0, ``LINGER`` or ``FOREVER``.
        write_rest: called right before the thread sleeps, after `awake` was set to False: from then on other threads
            write themselves, so it writes what they have left to the loop until then. None if others never write.
        lingers: the thread is about to wait for ``LINGER`` only, as `before_sleep` has asked for: not if it gives
            its turn back.
        awake: `before_sleep` will be called before the thread sleeps.
        batch: the number of the batch of calls that is run. All its calls were made before the batch began.
    """

    now = staticmethod(time.monotonic)
    """Seconds. The clock of all timers here, and of all deadlines."""

    def __init__(self) -> None:
        self.before_sleep: Callable[[bool], float] = lambda _over: FOREVER
        self.write_rest: Callable[[], None] | None = None
        self._start_clean()

    def _start_clean(self) -> None:
        """Have nothing to do. Also in a forked child."""
        self.awake = True
        self.batch = 0
        self._poller: Poller | None = None
        self._calls: deque[Call] = deque()
        self._last: deque[Call] = deque()
        self._timers: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._timers_lock = threading.Lock()
        self.lingers = False

    @property
    @abstractmethod
    def is_here(self) -> bool:
        """Whether this thread drives the loop now."""

    @abstractmethod
    def _drives_on(self, poller: Poller) -> bool:
        """Whether this thread still drives when it returns from a poller whose descriptors other code has closed."""

    def _add_timer(self, delay: float, func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Have a function called in so many seconds. Any thread. Returns whether it is the next one."""
        entry = (self.now() + delay, next(self._order), func, args)
        with self._timers_lock:
            heapq.heappush(self._timers, entry)
            return self._timers[0] is entry

    def will_step(self) -> bool:
        """Whether a step is going to write what has gathered. If not, this thread has to write it. Any thread."""
        return self.awake

    # On the driving thread

    def call_last(self, func: Callable[..., Any], *args: Any) -> None:
        """Run a function when all else is done, right before the thread sleeps. On the driving thread.

        This is for waking other threads: they need the interpreter, which is free then.
        """
        self._last.append((func, args))

    def watch(self, fd: int, func: Callable[[], None], *, write: bool = False) -> None:
        """Call a function whenever `fd` can be read, or, with `write`, can be read or written. On the driving thread.

        It is called repeatedly while that is so: read until there is nothing more, and leave `write` out when there is
        nothing to write. Another `watch` of the same `fd` replaces the former.

        Args:
            fd: a file descriptor, of a socket that does not block.
            func: what to call; it has to find out which of the two it is.
            write: also call it when `fd` can be written.
        """
        if self._poller is not None:
            self._poller.watch(fd, func, write)

    def unwatch(self, fd: int) -> None:
        """Undo `watch`, before the descriptor is closed. On the driving thread; idempotent."""
        if self._poller is not None:
            self._poller.unwatch(fd)

    def _step(self, until: float, ready: threading.Lock | None = None) -> None:
        """Sleep until there is something to do, but not longer than `until`, and do it.

        If `ready` was released meanwhile, it does not sleep: the driving thread waits for that.
        """
        poller = self._poller
        assert poller is not None
        rest = self._write_gathered(False)
        if ready is not None and not ready.locked():
            return
        self._fall_asleep()
        # Checked after that: later calls, and whoever releases `ready` later, wake the thread.
        is_due = self._calls or not rest or (ready is not None and not ready.locked())
        timeout = 0.0 if is_due else self._timeout(rest, until)
        lingers = self.lingers
        readable = poller.sleep(timeout)
        if poller.lost is not None and not self._drives_on(poller):
            return
        self.awake = True
        self._work(poller, readable)
        if lingers and timeout and not readable:
            self._write_gathered(True)

    def _work(self, poller: Poller, readable: list[tuple[int, int]]) -> None:
        """Read what can be read, and run calls and timers that are due."""
        # Each `try` here is for one function, and costs nothing; a function for all of them would cost a call for each.
        for fd, _ in readable:
            if (func := poller.functions.get(fd)) is not None:  # Otherwise an earlier one has unwatched it.
                try:
                    func()
                except BaseException:
                    _log_fault()
        if self._calls:
            self._run_calls()
        if self._timers and self._timers[0][0] <= self.now():
            self._run_timers()

    def _run_calls(self) -> None:
        calls = self._calls
        for _ in range(ROUNDS):
            if not calls:
                return
            self.batch += 1
            for _ in range(len(calls)):
                func, args = calls.popleft()
                try:
                    func(*args)
                except BaseException:
                    _log_fault()

    def _write_gathered(self, is_over: bool) -> float:
        """Call `before_sleep`, and run the last calls. Returns what `before_sleep` does."""
        try:
            rest = self.before_sleep(is_over)
        except BaseException:
            _log_fault()
            rest = 0.0
        last = self._last
        while last:
            call = last.popleft()
            try:
                call[0](*call[1])
            except BaseException:
                _log_fault()
            del call  # It must not be kept while the thread sleeps.
        self.lingers = rest == LINGER
        return rest

    def _fall_asleep(self) -> None:
        """From now on others write themselves, and wake whoever drives."""
        self.awake = False
        if self.write_rest is not None:
            try:
                self.write_rest()
            except BaseException:
                _log_fault()

    def _timeout(self, longest: float, until: float) -> float:
        """Seconds to sleep: at most `longest`, not beyond `until` nor the next timer; -1 for no bound."""
        if self._timers:
            until = min(until, self._timers[0][0])
        if until < FOREVER:
            longest = min(longest, until - self.now())
        return -1 if longest == FOREVER else max(0.0, min(longest, LONGEST_SLEEP))

    def _run_timers(self) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            with self._timers_lock:
                _, _, func, args = heapq.heappop(self._timers)
            try:
                func(*args)
            except BaseException:
                _log_fault()


def _log_fault() -> None:
    """Go on after an exception: without this thread nothing would be read, written or ended in time any more."""
    LOG.exception("the I/O thread goes on after an error that is a fault of msgbus")  # noqa: LOG004  # called in one
