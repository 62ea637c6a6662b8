"""The loop of a transport: it calls what has something to read, what is due, and what other threads hand it."""

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
"""Seconds for which the thread, once it has handed out work, may wait for more before it goes to sleep."""
CLOSE_TIMEOUT = 2.0
"""Seconds for which a loop that is closed goes on while somebody still watches a descriptor: a driver is closing."""
FOREVER = float("inf")

_Call = tuple[Callable[..., Any], tuple[Any, ...]]
_inherited: list[Any] = []
"""What is kept and never used: for a forked child, to let go of a library's socket may be to close the parent's."""


class Loop:
    """One thread, which is started by the first `call` or `call_later`. Nothing is opened before.

    Whoever hands it something wakes it only if it sleeps, so that a busy thread is handed much at once. For what is not
    urgent (`call_lazily`) it is not even woken while it lingers, which it does for a millisecond.

    In a forked child it starts clean: what was handed over is the parent's, and so are its descriptors. Futures among
    that fail with `CallCancelled`.

    Attributes:
        before_sleep: called when all there was is done, to write what has gathered; with True when lingering has
            brought nothing. It returns for how many seconds the thread may wait for more: 0, ``LINGER`` or ``FOREVER``.
        write_rest: called after that, when others know that the thread sleeps and write themselves: to write what they
            have left to it until then. None where others never write.
        awake: `before_sleep` will be called before the thread sleeps.
        closed: the thread has ended.
        batch: grows with each batch of what was handed over: all in it was handed over before the batch began.
    """

    now = staticmethod(time.monotonic)
    """Seconds. The clock of all that is due here, and of all deadlines of messages."""

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
        # Others have closed its descriptors: nothing can be read or written, and what is due goes on to be run.
        self._lost: OSError | None = None
        self._woken = threading.Event()
        self.closed = False
        self.batch = 0

    def _forked(self) -> None:
        """In a forked child: all of it is the parent's, whose threads may hold its lock."""
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
        """Whether anything was ever asked of it."""
        return self._thread is not None

    # Any thread

    def call(self, func: Callable[..., Any], *args: Any) -> bool:
        """Run a function on the loop's thread, soon. Any thread; functions are run in the order of the calls.

        What it raises is logged, and the loop goes on; so of all that the loop calls.

        Returns:
            False where the loop was closed, and nothing is run.

        Raises:
            TransportUnavailable: the operating system gives no thread or descriptor, or has taken one away.
        """
        if self._lost is not None:
            raise self._explain(self._lost)
        if self._thread is None:
            self._start()
        handed = (func, args)
        self._calls.append(handed)
        if self.closed:
            return self._was_run(handed)
        if not self.awake:
            self._rouse()
        return True

    def _was_run(self, handed: _Call) -> bool:
        """Whether a function was run that was handed over while the loop ended. Otherwise it will not be."""
        try:
            self._calls.remove(handed)
        except ValueError:
            return True
        return False

    def call_for(self, future: Future[Any], func: Callable[..., Any], *args: Any) -> None:
        """As `call`, but where the function cannot be run, `future` fails.

        With `CallCancelled` where the loop was closed, else with what `call` raises.
        """
        try:
            if not self.call(func, *args):
                fail(future, CallCancelled(f"{self._name} was closed"))
        except MessagingException as exc:
            fail(future, exc)

    def call_lazily(self, func: Callable[..., Any], *args: Any) -> None:
        """As `call`, a millisecond later if that saves waking the thread. It starts no thread where none runs yet."""
        self._calls.append((func, args))
        if not self.awake and not self._lingers:
            self._rouse()

    def call_later(self, delay: float, func: Callable[..., Any], *args: Any) -> None:
        """Run a function on the loop's thread in so many seconds, unless the loop is closed before. Any thread.

        It cannot be taken back: what it is about may be gone by then, so the function has to look.

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
            self._rouse()

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
            _inherited.append(poll)  # Their numbers may be somebody else's by now.
            return
        if poll is not None:
            poll.close()
        if wake >= 0:
            os.close(wake)

    def _rouse(self) -> None:
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
                # The thread waits where nobody can wake it. Another one ends in time what can only fail now.
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
        """End the thread, once it has run all that it was handed, and give the descriptors back. The core calls it.

        What is due later is not run. On the loop's own thread this returns at once, and the thread goes on for a moment
        for a driver that is still closing.
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
            self._rouse()
        except TransportUnavailable as exc:
            LOG.warning("%s", exc)
            return
        if thread is not threading.current_thread():
            thread.join(2 * CLOSE_TIMEOUT)

    # On the loop's thread

    def call_last(self, func: Callable[..., Any], *args: Any) -> None:
        """Run a function when all else is done, right before the thread sleeps. On the loop's thread.

        That is the moment for waking other threads: they need the interpreter, which is free then.
        """
        self._last.append((func, args))

    def watch(self, fd: int, func: Callable[[], None], *, write: bool = False) -> None:
        """Call a function whenever `fd` can be read, or, with `write`, can be read or written. On the loop's thread.

        It is called again and again while that is so: read until there is nothing more, and leave `write` out when
        there is nothing to write. Another `watch` of the same `fd` takes the place of the former.

        Args:
            fd: a file descriptor, of a socket that does not block.
            func: what to call; it has to find out which of both it is.
            write: whether also writing is waited for.
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
            pass  # Whoever started this thread has said by now which one it is.
        while self._lost is None or self.is_here:
            if self._close_until is not None and self._is_done():
                break
            self._turn()
        with self._changing:
            if not self.is_here:
                return
            self.closed = True
            self._due.clear()
        while self._calls:  # What was handed over in the last moment.
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
        rest = self._guard(self.before_sleep, False)
        last = self._last
        while last:
            self._guard(*_flat(last.popleft()))  # No name of this function holds it while the thread sleeps.
        lingers = rest == LINGER
        self._lingers, self.awake = lingers, False
        if self.write_rest is not None:
            self._guard(self.write_rest)
        # Looked at after that was set: what is appended from now on wakes the thread.
        timeout = 0.0 if self._calls or not rest else self._timeout(rest)
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
        """Wait until somebody rouses the thread, or the time is over."""
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
        except BaseException:  # Without its thread nothing would be read, written or ended in time any more.
            LOG.exception("the I/O thread goes on after an error that is a fault of msgbus")
            return None


def _flat(call: _Call) -> tuple[Any, ...]:
    return (call[0], *call[1])


def _future_of(arg: Any) -> Future[Any] | None:
    future = getattr(arg, "sent", arg)
    return future if isinstance(future, Future) else None


def _nothing() -> None:
    """Wakes the thread."""
