"""The loop of a transport: a thread that reads descriptors, and runs timers and calls from other threads."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.futures import fail, fail_inherited
from msgbus.exceptions import CallCancelled, MessagingException, TransportUnavailable
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child

LOG = get_logger(__name__)

LINGER = 0.001
"""Seconds that the thread may wait for more work before it goes to sleep."""
CLOSE_TIMEOUT = 2.0
"""Seconds for which a closed loop goes on while a driver that is closing still watches a descriptor."""
FOREVER = float("inf")

_Call = tuple[Callable[..., Any], tuple[Any, ...]]
_inherited: list[Any] = []
"""Kept and never used: in a forked child, releasing a library's socket may close the parent's."""


class Loop:
    """One thread, which is started by the first `call` or `call_later`. Nothing is opened before.

    `call` wakes the thread only if it sleeps, so a busy thread gets many calls at once. `call_lazily`, for what is not
    urgent, does not wake it while it lingers, for up to a millisecond.

    In a forked child it starts clean: its calls and descriptors belong to the parent. Futures among the calls'
    arguments fail with `CallCancelled`.

    Attributes:
        before_sleep: called when all work is done, to write what has gathered; with True when lingering has brought no
            work. It returns how many seconds the thread may wait for more: 0, ``LINGER`` or ``FOREVER``.
        write_rest: called right before the thread sleeps, after `awake` was set to False: from then on other threads
            write themselves, so it writes what they have left to the loop until then. None if others never write.
        awake: `before_sleep` will be called before the thread sleeps.
        closed: the thread has ended.
        batch: the number of the batch of calls that is run. All its calls were made before the batch began.
    """

    now = staticmethod(time.monotonic)
    """Seconds. The clock of all timers here, and of all deadlines."""

    def __init__(self, name: str) -> None:
        """Make a loop that does not run yet; `name` is its thread's."""
        self._name = name
        self.before_sleep: Callable[[bool], float] = lambda _over: FOREVER
        self.write_rest: Callable[[], None] | None = None
        self._start_clean()
        call_in_child(self._forked)

    def _start_clean(self) -> None:
        self._poll: Any = None
        self._wake = -1
        self._readers: dict[int, Callable[[], None]] = {}
        self._calls: deque[_Call] = deque()
        self._last: deque[_Call] = deque()
        self._due: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self.awake = True
        self._lingers = False
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._close_until: float | None = None
        # Other code has closed its descriptors: nothing can be read or written, but timers and calls still run.
        self._lost: OSError | None = None
        self._woken = threading.Event()
        self.closed = False
        self.batch = 0

    def _forked(self) -> None:
        """In a forked child: all of it belongs to the parent, whose threads may hold the lock."""
        if self._thread is None:
            self._changing = threading.Lock()
            return
        _inherited.append((self._readers, self._calls, self._last, self._due))
        futures = [future for _, args in self._calls for future in map(_future_of, args) if future is not None]
        if not self.closed:
            self._let_go()
        was_closing = self._close_until is not None
        self._start_clean()
        self.closed = was_closing
        for future in futures:
            fail_inherited(future)

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's thread."""
        return threading.current_thread() is self._thread

    @property
    def started(self) -> bool:
        """Whether its thread was ever started."""
        return self._thread is not None

    # Any thread

    def call(self, func: Callable[..., Any], *args: Any) -> bool:
        """Run a function on the loop's thread, soon. Any thread; functions are run in the order of the calls.

        If it raises, that is logged and the loop goes on, as with every function that the loop calls.

        Returns:
            False if the loop was closed, and the function is not run.

        Raises:
            TransportUnavailable: the operating system gives no thread or descriptor, or other code has closed one.
        """
        if self._lost is not None:
            raise self._explain(self._lost)
        if self._thread is None:
            self._start()
        entry = (func, args)
        self._calls.append(entry)
        if self.closed:
            return self._was_run(entry)
        if not self.awake:
            self._wake_up()
        return True

    def _was_run(self, entry: _Call) -> bool:
        """Whether a call that was made while the loop ended was run. If not, it never will be."""
        try:
            self._calls.remove(entry)
        except ValueError:
            return True
        return False

    def call_for(self, future: Future[Any], func: Callable[..., Any], *args: Any) -> None:
        """As `call`, but if the function cannot be run, `future` fails.

        With `CallCancelled` if the loop was closed, else with what `call` raises.
        """
        try:
            if not self.call(func, *args):
                fail(future, CallCancelled(f"{self._name} was closed"))
        except MessagingException as exc:
            fail(future, exc)

    def call_lazily(self, func: Callable[..., Any], *args: Any) -> None:
        """As `call`, a millisecond later if that saves waking the thread. It does not start the thread."""
        self._calls.append((func, args))
        if not self.awake and not self._lingers:
            self._wake_up()

    def call_later(self, delay: float, func: Callable[..., Any], *args: Any) -> None:
        """Run a function on the loop's thread in so many seconds, unless the loop is closed before. Any thread.

        It cannot be cancelled: the function has to check whether it is still needed.

        Raises:
            TransportUnavailable: the operating system gives no thread or descriptor.
        """
        if self.closed:
            return
        if self._thread is None:
            self._start()
        entry = (self.now() + delay, next(self._order), func, args)
        with self._changing:
            heapq.heappush(self._due, entry)
            is_next = self._due[0] is entry
        if is_next and not self.awake:
            self._wake_up()

    def _start(self) -> None:
        with self._changing:
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
        poll, wake = self._poll, self._wake
        self._poll, self._wake = None, -1
        if self._lost is not None:
            _inherited.append(poll)  # Their numbers may belong to other files by now.
            return
        if poll is not None:
            poll.close()
        if wake >= 0:
            os.close(wake)

    def _wake_up(self) -> None:
        with self._changing:
            if self.closed:
                return
            self.awake = True
            if self._lost is not None:
                self._woken.set()
                return
            try:
                os.eventfd_write(self._wake, 1)
            except OSError as exc:
                # The thread waits where it cannot be woken. Another one takes over, so that deadlines still end what
                # can only fail.
                self._lost = exc
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError as no_thread:
                    LOG.error("%s", descriptors.not_started(self._name, no_thread))
                raise self._explain(exc) from exc

    def _explain(self, exc: OSError) -> TransportUnavailable:
        return TransportUnavailable(descriptors.descriptors_closed(self._name, exc))

    def close(self) -> None:
        """End the thread, once it has run all calls, and close the descriptors. The core calls it.

        Timers that are not due yet are not run. On the loop's own thread this returns at once, and the thread goes on
        for a moment for a driver that is still closing.
        """
        with self._changing:
            if self._close_until is None:
                self._close_until = self.now() + CLOSE_TIMEOUT
            thread = self._thread
            if thread is None or self.closed:
                self.closed = True
                return
        self._calls.append((_nothing, ()))
        try:
            self._wake_up()
        except TransportUnavailable as exc:
            LOG.warning("%s", exc)
            return
        if thread is not threading.current_thread():
            thread.join(2 * CLOSE_TIMEOUT)

    # On the loop's thread

    def call_last(self, func: Callable[..., Any], *args: Any) -> None:
        """Run a function when all else is done, right before the thread sleeps. On the loop's thread.

        This is for waking other threads: they need the interpreter, which is free then.
        """
        self._last.append((func, args))

    def watch(self, fd: int, func: Callable[[], None], *, write: bool = False) -> None:
        """Call a function whenever `fd` can be read, or, with `write`, can be read or written. On the loop's thread.

        It is called repeatedly while that is so: read until there is nothing more, and leave `write` out when there is
        nothing to write. Another `watch` of the same `fd` replaces the former.

        Args:
            fd: a file descriptor, of a socket that does not block.
            func: what to call; it has to find out which of the two it is.
            write: also call it when `fd` can be written.
        """
        if self._lost is not None:
            return
        events = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        if fd in self._readers:
            self._poll.modify(fd, events)
        else:
            self._poll.register(fd, events)
        self._readers[fd] = func

    def unwatch(self, fd: int) -> None:
        """Undo `watch`, before the descriptor is closed. On the loop's thread; idempotent."""
        if self._readers.pop(fd, None) is not None and self._lost is None:
            self._poll.unregister(fd)

    def _run(self) -> None:
        with self._changing:
            pass  # By now the code that started this thread has set `_thread`.
        while self._lost is None or self.is_here:
            if self._close_until is not None and self._is_done():
                break
            self._turn()
        with self._changing:
            if not self.is_here:
                return
            self.closed = True
            self._due.clear()
        while self._calls:  # Calls that were made at the last moment.
            self._guard(*_flat(self._calls.popleft()))
        with self._changing:
            self._let_go()

    def _is_done(self) -> bool:
        """Whether a loop that is to be closed has nothing left to do."""
        assert self._close_until is not None
        if self._calls or self._last:
            return False
        return not self._readers or self.now() >= self._close_until

    def _turn(self) -> None:
        """Wait until there is something to do, and do it."""
        idle_wait = self._guard(self.before_sleep, False)
        last = self._last
        while last:
            self._guard(*_flat(last.popleft()))  # No local name keeps it alive while the thread sleeps.
        lingers = idle_wait == LINGER
        self._lingers, self.awake = lingers, False
        if self.write_rest is not None:
            self._guard(self.write_rest)
        # Checked after `awake` was set: calls that are appended from now on wake the thread.
        timeout = 0.0 if self._calls or not idle_wait else self._timeout(idle_wait)
        try:
            events = self._poll.poll(timeout) if self._lost is None else self._wait_without_descriptors(timeout)
        except OSError as exc:
            LOG.error("%s", self._explain(exc))
            self._lost, events = exc, []
        if self._lost is not None and not self.is_here:
            return  # Another thread has taken over.
        self.awake = True
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
        if self._due and self._due[0][0] <= self.now():
            self._run_due()
        if lingers and timeout and not events:
            self._guard(self.before_sleep, True)

    def _wait_without_descriptors(self, timeout: float) -> list[tuple[int, int]]:
        """Wait until the thread is woken, or the time is over."""
        self._woken.wait(None if timeout < 0 else timeout)
        self._woken.clear()
        return []

    def _timeout(self, longest: float | None) -> float:
        """Seconds until something is due; -1 for no bound."""
        timeout = FOREVER if longest is None else longest
        if self._due:
            timeout = min(timeout, self._due[0][0] - self.now())
        if self._close_until is not None:
            timeout = min(timeout, self._close_until - self.now())
        return -1 if timeout > threading.TIMEOUT_MAX else max(0.0, timeout)

    def _run_due(self) -> None:
        now = self.now()
        while self._due and self._due[0][0] <= now:
            with self._changing:
                _, _, func, args = heapq.heappop(self._due)
            self._guard(func, *args)

    @staticmethod
    def _guard(func: Callable[..., Any], *args: Any) -> Any:
        try:
            return func(*args)
        except BaseException:  # Without this thread nothing would be read, written or ended in time any more.
            LOG.exception("the I/O thread goes on after an error that is a fault of msgbus")
            return None


def _flat(call: _Call) -> tuple[Any, ...]:
    return (call[0], *call[1])


def _future_of(arg: Any) -> Future[Any] | None:
    future = getattr(arg, "sent", arg)
    return future if isinstance(future, Future) else None


def _nothing() -> None:
    """Wakes the thread."""
