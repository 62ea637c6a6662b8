"""The loop of a transport: it reads, writes, and runs timers and calls, on whichever thread drives it.

What a step of it does is in `steps`, and which thread does it, in `driving`. Here are calls and timers from any thread,
the loop's own thread, and the loop's beginning and end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.driving import Driving
from msgbus.drivers.toolkit.futures import fail, fail_inherited
from msgbus.drivers.toolkit.poller import Poller
from msgbus.drivers.toolkit.signals import putting_off_signals
from msgbus.drivers.toolkit.steps import FOREVER, LINGER, Call
from msgbus.exceptions import CallCancelled, MessagingException, TransportUnavailable
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child

__all__ = ("FOREVER", "LINGER", "Loop")

LOG = get_logger(__name__)

CLOSE_TIMEOUT = 2.0
"""Seconds for which a closed loop goes on while a driver that is closing still watches a descriptor."""

_inherited: list[Any] = []
"""Kept in a forked child and never used: to release a library's socket may be to close the parent's connection."""


class Loop(Driving):
    """One thread at a time drives it. Nothing is opened, and no thread is started, before the first `call`.

    The first `call` or `call_later` starts a thread of the loop's own. A thread that waits for something that the loop
    will bring (`wait`) drives the loop itself, if no other thread does: so the thread that waits for an answer reads
    it, and the thread that will run a request reads that, and no other thread has to be woken. Meanwhile the loop's own
    thread stands by. It drives again as soon as it is needed, or when no thread has driven for 5 ms.

    `call` wakes the driving thread only if it sleeps, so a busy thread gets many calls at once. `call_lazily`, for what
    is not urgent, does not wake it while it lingers, for up to a millisecond.

    A function that the loop calls must not wait for anything that the loop brings, on whatever thread it runs. It runs
    in the loop's own context: it does not see the context variables of the driving thread.

    In a forked child the loop starts clean: its calls and descriptors belong to the parent. Futures among the calls'
    arguments fail with `CallCancelled`.

    Attributes:
        closed: the loop has ended.
    """

    def __init__(self, name: str) -> None:
        """Make a loop that does not run yet; `name` is its thread's."""
        self._keeps_thread = False
        super().__init__(name)
        call_in_child(self._forked)

    def _start_clean(self) -> None:
        super()._start_clean()
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._close_until: float | None = None
        self._has_said_loss = False  # it is in the log that the descriptors were closed
        self.closed = False

    def _forked(self) -> None:
        """In a forked child: all of it belongs to the parent, whose threads may hold the lock."""
        if self._thread is None:
            self._changing = threading.Lock()
            self._main_thread = threading.main_thread().ident
            return
        _inherited.append((self._calls, self._last, self._timers))
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
    def started(self) -> bool:
        """Whether its thread was ever started."""
        return self._thread is not None

    @property
    def broken(self) -> TransportUnavailable | None:
        """The error if other code has closed the descriptors, so that nothing can be read or written, or None."""
        poller = self._poller
        return None if poller is None or poller.lost is None else self._explain(poller.lost)

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
        elif (poller := self._poller) is not None and poller.lost is not None and not poller.polls:
            raise self._explain(poller.lost)
        entry = (func, args)
        self._calls.append(entry)
        if self.closed:
            return self._was_run(entry)
        if not self.awake:
            self._wake_up(entry)
        return True

    def _was_run(self, entry: Call) -> bool:
        """Whether a call to a loop that has just ended or broken was run. If not, it never will be."""
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
        if not self.awake and not self.lingers:
            self._wake_up()

    @putting_off_signals
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
        if self._add_timer(delay, func, args) and not self.awake:
            self._wake_up()

    @putting_off_signals
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
            self._may_be_driven = not self._keeps_thread and self._close_until is None

    @putting_off_signals
    def _wake_up(self, entry: Call | None = None) -> None:
        """Have the driving thread, or else the loop's own, do what there is to do.

        Raises:
            TransportUnavailable: the driving thread cannot be woken, and the call `entry` will never be run.
        """
        with self._changing:
            if self.closed or self._poller is None:
                return
            try:
                self.awake = True
                if self._turn.is_free:
                    self._turn.call_thread()
                else:
                    self._poller.wake()
            except OSError as exc:
                was_run = entry is not None and self._was_run(entry)
                self._replace_driver(self._poller)
                if not was_run:
                    raise self._explain(exc) from exc
            except BaseException:  # Other code has raised it in this thread, perhaps before anybody was woken.
                self.awake = False
                raise

    def _replace_driver(self, poller: Poller) -> None:
        """Have another thread drive: the one that does sleeps in `poller`, where it cannot be woken.

        Deadlines still end what can only fail. That thread may return just now: then it waits for `_changing`, and
        finds that it does not drive any more.
        """
        own = self._thread
        if own is not None and self._turn.owner == own.ident:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError as exc:
                LOG.error("%s", descriptors.not_started(self._name, exc))
        self._poller = poller.replacement()
        self._context = self._context.copy()  # That thread is still in the old one.
        self._turn.end()

    def _explain(self, exc: OSError) -> TransportUnavailable:
        return TransportUnavailable(descriptors.descriptors_closed(self._name, exc))

    def close(self) -> None:
        """End the thread, once it has run all calls, and close the descriptors. The core calls it.

        Timers that are not due yet are not run. On the driving thread this returns at once, and the loop goes on for a
        moment for a driver that is still closing.
        """
        thread = self._begin_close()
        if thread is None:
            return
        self._calls.append((_nothing, ()))
        try:
            self._wake_up()
        except TransportUnavailable as exc:
            LOG.warning("%s", exc)
            return
        if thread is not threading.current_thread() and not self.is_here:
            thread.join(2 * CLOSE_TIMEOUT)

    @putting_off_signals
    def _begin_close(self) -> threading.Thread | None:
        """Returns the thread that has to end, if there is one."""
        with self._changing:
            self._may_be_driven = False
            if self._close_until is None:
                self._close_until = self.now() + CLOSE_TIMEOUT
            if self._thread is None or self.closed:
                self.closed = True
                return None
            return self._thread

    # The loop's own thread

    @putting_off_signals
    def keep_thread(self) -> None:
        """From now on the loop's own thread is the only one that drives. Any thread.

        For what must always run on the same thread, such as an event loop of asyncio.
        """
        self._keeps_thread = True
        with self._changing:
            self._may_be_driven = False
        if self._thread is not None:
            self._wake_up()

    def _run(self) -> None:
        """The loop's own thread."""
        with self._changing:
            pass  # The thread that has started this one has noted it by now.
        me = threading.current_thread()
        overdue = False
        while self._thread is me:
            if self._turn.take() or (overdue and self._turn.take_away()):
                self.awake = True
                self._context.run(self._drive_as_thread)
                if self.closed:
                    return
                if self.is_here:  # Otherwise another thread has taken over, since this one could not be woken.
                    self._let_go()
            if self._thread is me:
                overdue = self._turn.stand_by()

    def _drive_as_thread(self) -> None:
        """Drive until a thread that waits may take over, or the loop ends. This thread has the turn."""
        while self.is_here:
            if self._close_until is not None and self._is_done():
                self._end()
                return
            self._step(FOREVER if self._close_until is None else self._close_until)
            if self._turn.is_wanted and self._may_be_driven:
                self._write_gathered(False)
                return

    def _drives_on(self, poller: Poller) -> bool:
        with self._changing:  # While its driver is replaced, it waits.
            if not self.is_here:
                return False
        if poller.lost is not None and not self._has_said_loss:
            self._has_said_loss = True
            LOG.error("%s", self._explain(poller.lost))
        return True

    def _end(self) -> None:
        """The thread ends, and so does the loop."""
        with self._changing:
            self.closed = True
        while self._calls:  # Calls that were made at the last moment.
            self._run_calls()
        self._timers.clear()  # They may refer to much, and the loop may outlive its end.
        self._turn.owner = None  # Another thread may be given the number of this one when it has ended.
        self._close_poller()

    def _close_poller(self) -> None:
        with self._changing:
            if self._poller is not None:
                self._poller.close()
                self._poller = None

    def _is_done(self) -> bool:
        """Whether a loop that is to be closed has nothing left to do."""
        assert self._close_until is not None
        if self._calls or self._last:
            return False
        watches = self._poller is not None and bool(self._poller.functions)
        return not watches or self.now() >= self._close_until


def _future_of(arg: Any) -> Future[Any] | None:
    future = getattr(arg, "sent", arg)
    return future if isinstance(future, Future) else None


def _nothing() -> None:
    """Wakes the thread."""
