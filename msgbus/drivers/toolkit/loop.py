"""The loop of a transport: a thread that reads descriptors, and runs timers and calls from other threads."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from threading import get_ident
from typing import Any

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.futures import fail, fail_inherited
from msgbus.drivers.toolkit.poller import Poller
from msgbus.drivers.toolkit.signals import HeldSignals
from msgbus.drivers.toolkit.turn import Turn, unlock
from msgbus.exceptions import CallCancelled, MessagingException, TransportUnavailable
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child

LOG = get_logger(__name__)

LINGER = 0.001
"""Seconds for which the thread, once it has handed out work, may wait for more before it goes to sleep."""
ROUNDS = 10
"""So often what was handed over is run before the loop looks at descriptors again, if each round brings more of it."""
CLOSE_TIMEOUT = 2.0
"""Seconds for which a closed loop goes on while a driver that is closing still watches a descriptor."""
FOREVER = float("inf")

_Call = tuple[Callable[..., Any], tuple[Any, ...]]
_inherited: list[Any] = []
"""Kept and never used: in a forked child, releasing a library's socket may close the parent's."""


class Loop:
    """Driven by one thread at a time. Nothing is opened, and no thread is started, before the first `call`.

    It has a thread of its own, which the first `call` or `call_later` starts. A thread that waits for something that
    the loop will bring (`wait`) drives it itself, if nobody else does: then an answer is read by the thread that it is
    for, and a request by the thread that will run it, and no other has to be woken. The loop's own thread stands by
    meanwhile: it drives again as soon as it is needed, or when nobody has driven for ``STAND_BY``.

    Whoever hands it something wakes the driving thread only if that sleeps, so that a busy one is handed much at once.
    For what is not urgent (`call_lazily`) it is not even woken while it lingers, which it does for a millisecond.

    What the loop calls may not wait for what the loop brings, whatever thread it runs on. It runs in a context of its
    own: context variables of the driving thread are not seen.

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
        self._keeps_thread = False
        self._start_clean()
        call_in_child(self._forked)

    def _start_clean(self) -> None:
        self._poller: Poller | None = None
        self._calls: deque[_Call] = deque()
        self._last: deque[_Call] = deque()
        self._due: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self.awake = True
        self._lingers = False
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._close_until: float | None = None
        self.closed = False
        self.batch = 0
        self._context = Context()
        self._signals = HeldSignals(self._on_signal)
        self._turn = Turn()

    def _forked(self) -> None:
        """In a forked child: all of it belongs to the parent, whose threads may hold the lock."""
        if self._thread is None:
            self._changing = threading.Lock()
            return
        _inherited.append((self._calls, self._last, self._due))
        futures = [future for _, args in self._calls for future in map(_future_of, args) if future is not None]
        if self._poller is not None:
            self._poller.abandon()
        self._signals.abandon()
        was_closing = self._close_until is not None
        self._start_clean()
        self.closed = was_closing
        for future in futures:
            fail_inherited(future)

    @property
    def is_here(self) -> bool:
        """Whether this thread drives the loop now."""
        return self._turn.is_mine

    @property
    def started(self) -> bool:
        """Whether its thread was ever started."""
        return self._thread is not None

    # Any thread

    def call(self, func: Callable[..., Any], *args: Any) -> bool:
        """Run a function on the driving thread, soon. Any thread; functions are run in the order of the calls.

        If it raises, that is logged and the loop goes on, as with every function that the loop calls.

        Returns:
            False if the loop was closed, and the function is not run.

        Raises:
            TransportUnavailable: the operating system gives no thread or descriptor, or other code has closed one.
        """
        if self._thread is None:
            self._start()
        elif (poller := self._poller) is not None and poller.lost is not None:
            raise self._explain(poller.lost)
        handed = (func, args)
        self._calls.append(handed)
        if self.closed:
            return self._was_run(handed)
        if not self.awake:
            self._wake_up(handed)
        return True

    def _was_run(self, handed: _Call) -> bool:
        """Whether a function was run all the same, of a loop that has ended or broken. Otherwise it will not be."""
        try:
            self._calls.remove(handed)
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
        """Run a function on the driving thread in so many seconds, unless the loop is closed before. Any thread.

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
                self._poller = Poller()
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
            except (OSError, RuntimeError) as exc:
                poller, self._poller = self._poller, None
                if poller is not None:
                    poller.close()
                raise TransportUnavailable(descriptors.not_started(self._name, exc)) from exc
            self._thread = thread

    def _wake_up(self, handed: _Call | None = None) -> None:
        """See that somebody drives, and does what was handed over.

        Raises:
            TransportUnavailable: the one who drives cannot be woken, and `handed` was not done, and will not be.
        """
        with self._changing:
            if self.closed or self._poller is None:
                return
            self.awake = True
            if self._turn.is_free:
                self._turn.call_thread()
                return
            try:
                self._poller.wake()
            except OSError as exc:
                # Who drives sleeps where nobody can wake it. Another thread ends in time what can only fail now.
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                was_run = handed is not None and self._was_run(handed)
                self._turn.end()
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError as no_thread:
                    LOG.error("%s", descriptors.not_started(self._name, no_thread))
                if not was_run:
                    raise self._explain(exc) from exc

    def _explain(self, exc: OSError) -> TransportUnavailable:
        return TransportUnavailable(descriptors.descriptors_closed(self._name, exc))

    def close(self) -> None:
        """End the thread, once it has run all calls, and close the descriptors. The core calls it.

        What is due later is not run. On the driving thread this returns at once, and the loop goes on for a moment
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
            self._wake_up()
        except TransportUnavailable as exc:
            LOG.warning("%s", exc)
            return
        if thread is not threading.current_thread() and not self.is_here:
            thread.join(2 * CLOSE_TIMEOUT)

    # Waiting, and driving meanwhile

    @property
    def _may_be_driven(self) -> bool:
        """Whether callers may drive."""
        return not self._keeps_thread and self._thread is not None and self._close_until is None

    def keep_thread(self) -> None:
        """From now on the loop's own thread is the only one that drives. Any thread.

        For what has to run on one thread always, such as an event loop of asyncio.
        """
        self._keeps_thread = True
        if self._thread is not None and not self.awake:
            self._wake_up()

    def take_turn(self) -> bool:
        """Drive the loop from this thread, if nobody does: `wait` does the work, and `give_turn` has to follow.

        Who is going to wait takes the turn before it sends: then nobody else has to be woken for that. Until it waits,
        or gives the turn back, the loop stands still. On the main thread signals are handled between two steps only.

        Returns:
            False where another thread drives, or this one does already: then there is nothing to give back.

        Raises:
            BaseException: what a handler of a signal raises.
        """
        if not self._turn.is_free or not self._may_be_driven:
            return False
        is_main = get_ident() == threading.main_thread().ident
        if is_main:
            self._signals.hold()
        if not self._turn.take():
            if is_main:
                self._signals.release()
            return False
        self.awake = True
        return True

    def give_turn(self) -> None:
        """Let others drive; what has gathered is written before.

        Raises:
            BaseException: what a handler of a signal raises that has come meanwhile.
        """
        if self.is_here:  # Otherwise another thread has taken over, since this one could not be woken.
            self._context.run(self._finish)
            self._let_go()
        if get_ident() == threading.main_thread().ident:
            self._signals.release()

    def go_away(self) -> None:
        """Do something short before this thread drives again: see `come_back`. It has the turn, or nothing happens.

        What others hand over, and what this thread writes, waits until then. If it takes longer than ``STAND_BY``, the
        loop's own thread takes the turn away.
        """
        self._turn.go_away()

    def come_back(self) -> bool:
        """Drive again after `go_away`. False: another thread does meanwhile."""
        return self._turn.come_back()

    def step(self) -> None:
        """Do what there is to do without sleeping. On the driving thread, between two pieces of work of its own."""
        self._context.run(self._step, 0.0)

    def _finish(self) -> None:
        """Write what has gathered, before the turn is given away."""
        rest = self._guard(self.before_sleep, False)
        self._run_last()
        self._lingers = rest == LINGER

    def _let_go(self) -> None:
        self.awake = False
        if self.write_rest is not None:
            self._guard(self.write_rest)
        self._turn.release()
        # Looked at after that: what is handed over from now on calls the thread.
        if self._calls or not self._may_be_driven:
            self.awake = True
            self._turn.call_thread()
        else:
            self._turn.offer()

    def wait(self, ready: threading.Lock, until: float) -> None:
        """Wait until somebody releases `ready`, which is then held again; drive the loop meanwhile, if nobody does.

        It may return before that: look whether what was waited for is there, and wait again. Any thread, and also for
        what the loop calls back; but not from within that.

        Args:
            ready: a lock that is held. Anybody may release it, at any time.
            until: when to give up, in seconds of `now`.

        Raises:
            BaseException: what a handler of a signal raises meanwhile.
        """
        if ready.acquire(blocking=False):
            return
        if self.is_here:
            self._drive(ready, until)
        elif self.come_back():
            try:
                self._drive(ready, until)
            finally:
                self.go_away()
        elif self.take_turn():
            try:
                self._drive(ready, until)
            finally:
                self.give_turn()
        else:
            self._follow(ready, until)

    def wake(self, ready: threading.Lock) -> None:
        """Release what a thread waits for in `wait`, if that was not done already. Any thread."""
        unlock(ready)
        if not self.awake and not self._turn.is_free:
            self._wake_up()  # It may be the one that drives, and sleeps until there is something to read.

    def wait_for(self, future: Future[Any], until: float) -> bool:
        """Wait as `wait` does until a future is done. Returns whether it is."""
        if future.done():
            return True
        ready = threading.Lock()
        ready.acquire()
        future.add_done_callback(lambda _: self.wake(ready))
        while not future.done() and self.now() < until:
            self.wait(ready, until)
        return future.done()

    def _drive(self, ready: threading.Lock, until: float) -> None:
        is_main = get_ident() == threading.main_thread().ident
        if is_main:
            self._signals.hold()  # They are not held where a handler of one of them waits.
        while self.is_here:
            self._context.run(self._step, until, ready)
            if ready.acquire(blocking=False) or self.now() >= until or not self._may_be_driven:
                return
            if is_main and self._signals.pending:
                self._signals.release()
                self._signals.hold()

    def _follow(self, ready: threading.Lock, until: float) -> None:
        """Wait while another thread drives, and be ready to take over."""
        self._turn.want(ready)
        try:
            # Looked at after that: who gives the turn away from now on wakes somebody who waits.
            if not self._turn.is_free or not self._may_be_driven:
                ready.acquire(timeout=min(max(until - self.now(), 0.0), threading.TIMEOUT_MAX))
        finally:
            self._turn.want_no_more()

    def _on_signal(self) -> None:
        """A signal has come for the main thread, which drives: it may sleep."""
        poller = self._poller
        if poller is not None:
            try:
                poller.wake()
            except OSError:
                pass  # It is noticed by the next who wakes it.

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

    def _run(self) -> None:
        """What the loop's own thread does."""
        with self._changing:
            pass  # Whoever started this thread has said by now which one it is.
        me = threading.current_thread()
        overdue = False
        while self._thread is me:
            if self._turn.take() or (overdue and self._turn.take_away()):
                self.awake = True
                self._drive_as_thread()
                if self.closed or self._thread is not me:
                    return
                self._let_go()
            overdue = self._turn.stand_by()

    def _drive_as_thread(self) -> None:
        """Drive until callers may do it, or the end. The turn is held."""
        while self.is_here:
            if self._close_until is not None and self._is_done():
                self._end()
                return
            self._step(FOREVER)
            if self._turn.is_wanted and self._may_be_driven:
                self._finish()
                return

    def _end(self) -> None:
        """The thread ends, and so does the loop."""
        with self._changing:
            self.closed = True
            self._due.clear()
        while self._calls:  # Calls that were made at the last moment.
            self._guard(*_flat(self._calls.popleft()))
        with self._changing:
            if self._poller is not None:
                self._poller.close()
                self._poller = None

    def _is_done(self) -> bool:
        """Whether a loop that is to be closed has nothing left to do."""
        assert self._close_until is not None
        if self._calls or self._last:
            return False
        watches = self._poller is not None and self._poller.is_watching
        return not watches or self.now() >= self._close_until

    def _step(self, until: float, ready: threading.Lock | None = None) -> None:
        """Sleep until there is something to do, but not longer than `until`, and do it. See `wait` for `ready`."""
        poller = self._poller
        assert poller is not None
        rest = self._guard(self.before_sleep, False)
        self._run_last()
        if ready is not None and not ready.locked():
            return  # That was what the caller waits for.
        lingers = rest == LINGER
        self._lingers, self.awake = lingers, False
        if self.write_rest is not None:
            self._guard(self.write_rest)
        # Looked at after that was set: what is appended from now on wakes the thread.
        timeout = 0.0 if self._calls or not rest else self._timeout(rest, until)
        was_lost = poller.lost is not None
        readable = poller.sleep(timeout)
        if poller.lost is not None:
            if not self.is_here:
                return  # Another thread has taken over.
            if not was_lost:
                LOG.error("%s", self._explain(poller.lost))
        self.awake = True
        for fd in readable:
            if (func := poller.function(fd)) is not None:
                self._guard(func)
        calls = self._calls
        for _ in range(ROUNDS):
            if not calls:
                break
            self.batch += 1
            for _ in range(len(calls)):
                func, args = calls.popleft()
                self._guard(func, *args)
        if self._due and self._due[0][0] <= self.now():
            self._run_due()
        if lingers and timeout and not readable:
            self._guard(self.before_sleep, True)

    def _run_last(self) -> None:
        last = self._last
        while last:
            self._guard(*_flat(last.popleft()))  # No name of this function holds it while the thread sleeps.

    def _timeout(self, longest: float | None, until: float) -> float:
        """Seconds until something is due; -1 for no bound."""
        timeout = FOREVER if longest is None else longest
        until = min(until, self._due[0][0]) if self._due else until
        if self._close_until is not None:
            until = min(until, self._close_until)
        if until < FOREVER:
            timeout = min(timeout, until - self.now())
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
