"""The loop of a transport: it reads, writes, and runs timers and calls, on whichever thread drives it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from functools import wraps
from threading import get_ident
from typing import Any, Concatenate, ParamSpec, TypeVar

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.futures import fail, fail_inherited, forget_callback
from msgbus.drivers.toolkit.poller import Poller
from msgbus.drivers.toolkit.signals import HeldSignals
from msgbus.drivers.toolkit.steps import FOREVER, LINGER, Call, Steps
from msgbus.drivers.toolkit.turn import Turn, unlock
from msgbus.exceptions import CallCancelled, MessagingException, TransportUnavailable
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child

__all__ = ("FOREVER", "LINGER", "Loop")

LOG = get_logger(__name__)

LoopType = TypeVar("LoopType", bound="Loop")
P = ParamSpec("P")
T = TypeVar("T")

CLOSE_TIMEOUT = 2.0
"""Seconds for which a closed loop goes on while a driver that is closing still watches a descriptor."""

_inherited: list[Any] = []
"""Kept in a forked child and never used: to release a library's socket may be to close the parent's connection."""


def _putting_off_signals(
    method: Callable[Concatenate[LoopType, P], T],
) -> Callable[Concatenate[LoopType, P], T]:
    """The same method, during which handlers of signals are put off. For what takes a lock on the main thread.

    In Python 3.14 a handler may run when a ``with`` statement has just acquired a lock: what it raises would leave the
    lock acquired for ever.
    """

    @wraps(method)
    def run(self: LoopType, /, *args: P.args, **kwargs: P.kwargs) -> T:
        holds = self.hold_signals()
        try:
            return method(self, *args, **kwargs)
        finally:
            if holds:
                self.release_signals()

    return run


class Loop(Steps):
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
        self._name = name
        self._keeps_thread = False
        super().__init__()
        call_in_child(self._forked)

    def _start_clean(self) -> None:
        super()._start_clean()
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._close_until: float | None = None
        self.closed = False
        self._context = Context()
        self._signals = HeldSignals(self._on_signal)
        self._turn = Turn()
        self._may_be_driven = False
        self._main_thread = threading.main_thread().ident

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
    def is_here(self) -> bool:
        """Whether this thread drives the loop now."""
        return self._turn.owner == get_ident()

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

    @_putting_off_signals
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

    @_putting_off_signals
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

    @_putting_off_signals
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
                # The driving thread sleeps where it cannot be woken. Another one takes over, so that deadlines still
                # end what can only fail.
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                was_run = entry is not None and self._was_run(entry)
                self._turn.end()
                self._context = self._context.copy()  # That thread is still in the old one.
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError as no_thread:
                    LOG.error("%s", descriptors.not_started(self._name, no_thread))
                if not was_run:
                    raise self._explain(exc) from exc
            except BaseException:  # Other code has raised it in this thread, perhaps before anybody was woken.
                self.awake = False
                raise

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

    @_putting_off_signals
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

    # Waiting, and driving the loop meanwhile

    @_putting_off_signals
    def keep_thread(self) -> None:
        """From now on the loop's own thread is the only one that drives. Any thread.

        For what must always run on the same thread, such as an event loop of asyncio.
        """
        self._keeps_thread = True
        with self._changing:
            self._may_be_driven = False
        if self._thread is not None:
            self._wake_up()

    def take_turn(self) -> bool:
        """Let this thread drive, if no other does. `wait` then does the work; `give_turn` has to follow.

        A thread that is going to wait takes the turn before it sends, so that no other thread is woken for that. Until
        it waits or gives the turn back, the loop does nothing. On the main thread, handlers of signals are put off
        while the loop works, and run between two of its steps.

        Returns:
            whether the turn has to be given back. It does not if another thread drives, or this one did already.

        Raises:
            BaseException: a handler of a signal has raised it.
        """
        if not self._may_be_driven or not self._turn.is_free:
            return False
        is_main = get_ident() == self._main_thread
        if is_main:
            self._signals.hold()
        if not self._turn.take():
            if is_main:
                self._signals.release()
            return False
        self.awake = True
        return True

    def give_turn(self) -> None:
        """Let other threads drive, once everything that has gathered is written.

        Raises:
            BaseException: a handler of a signal has raised it that was put off.
        """
        me = get_ident()
        is_main = me == self._main_thread
        try:
            if is_main and not self._signals.holds:  # As when a handler has raised.
                self._signals.hold()
        finally:
            if self._turn.owner == me:  # Otherwise another thread has taken over.
                self._context.run(self._write_gathered, False)
                self._let_go()
            if is_main:
                self._signals.release()

    def hold_signals(self) -> bool:
        """On the main thread, put off handlers of signals: for what an exception must not leave half done. Any thread.

        Returns:
            whether `release_signals` has to follow. It does not on other threads, or if they are put off already.

        Raises:
            BaseException: a handler of a signal has raised it.
        """
        if get_ident() != self._main_thread or self._signals.holds:
            return False
        self._signals.hold()
        return True

    def release_signals(self) -> None:
        """Run the handlers that were put off. On the main thread.

        Raises:
            BaseException: a handler of a signal has raised it.
        """
        self._signals.release()

    def go_away(self) -> None:
        """Keep the turn while this thread does something short, until `come_back`. Without the turn it does nothing.

        Calls to the loop, and everything that is to be written, wait until then. If it takes more than a few
        milliseconds, the loop's own thread takes over. If only that may drive any more, it gets the turn now.
        """
        if self._may_be_driven:
            self._turn.go_away()
        elif self.is_here:
            self.give_turn()

    def come_back(self) -> bool:
        """Drive again after `go_away`. False if another thread has taken over, or this one never had the turn."""
        return self._turn.come_back()

    def step(self) -> None:
        """Do what there is to do, without sleeping. On the driving thread, between two pieces of other work."""
        self._context.run(self._step, 0.0)

    def _let_go(self) -> None:
        self.lingers = False
        self._context.run(self._fall_asleep)
        self._turn.release()
        # Checked after that: later calls wake the loop's own thread. (`awake` is not set: another thread may have taken
        # the turn by now, and sleep. If it is set and nobody has the turn, a thread that found the turn taken just
        # before has set it, and has woken nobody who would do something.)
        if self._calls or not self._may_be_driven or (self.awake and self._turn.is_free):
            self._turn.call_thread()
        else:
            self._turn.offer()

    def wait(self, ready: threading.Lock, until: float) -> None:
        """Wait until `ready` is released, and acquire it again. Drive the loop meanwhile, if no other thread does.

        It may also return early: check for the result, and wait again. Any thread, but not in a function that the loop
        calls.

        Args:
            ready: a lock that is held. `wake` releases it.
            until: when to give up, in seconds of `now`.

        Raises:
            MessagingException: this is in a function that the loop calls.
            BaseException: a handler of a signal has raised it.
        """
        if ready.acquire(blocking=False):
            return
        is_here = self._turn.owner == get_ident()
        was_away = not is_here and self._turn.come_back()
        if (is_here or was_away) and not self._may_be_driven:
            self._check_whether_working()
            self.give_turn()  # The loop has to be driven by its own thread now.
            self._follow(ready, until)
        elif is_here:
            self._drive(ready, until)
        elif was_away:
            try:
                self._drive(ready, until)
            finally:
                self.go_away()
                if get_ident() == self._main_thread:  # It waits in a handler of a signal, where others may come.
                    self._signals.release()
        elif self.take_turn():
            try:
                self._drive(ready, until)
            finally:
                self.give_turn()
        else:
            self._follow(ready, until)

    def wake(self, ready: threading.Lock) -> None:
        """End the `wait` of a thread, or its next one. Any thread, any number of times."""
        unlock(ready)
        if not self.awake and not self._turn.is_free:
            self._wake_up()  # It may be the driving thread, which sleeps until there is something to read.

    def wait_for(self, future: Future[Any], until: float) -> bool:
        """Wait like `wait`, until a future is done. Returns whether it is."""
        if future.done():
            return True
        ready = threading.Lock()
        ready.acquire()

        def on_done(_future: Future[Any]) -> None:
            self.wake(ready)

        future.add_done_callback(on_done)
        try:
            while not future.done() and self.now() < until:
                self.wait(ready, until)
        finally:
            is_done = future.done()
            if not is_done:  # Many may wait, one after another, for what is never done.
                forget_callback(future, on_done)
        return is_done

    def _drive(self, ready: threading.Lock, until: float) -> None:
        me = get_ident()
        is_main = me == self._main_thread
        if is_main and not self._signals.holds:  # As in a handler of a signal.
            self._signals.hold()
        while self._turn.owner == me:  # Another turn, of nobody, in a child that was forked meanwhile.
            try:
                self._context.run(self._step, until, ready)
            except RuntimeError:
                self._check_whether_working()
                raise
            if ready.acquire(blocking=False) or self.now() >= until or not self._may_be_driven:
                return
            if is_main and self._signals.pending:
                self._run_handlers()

    def _check_whether_working(self) -> None:
        """Check that the driving thread is between two steps, and not in one.

        Raises:
            MessagingException: it is in a step: in a function that the loop has called.
        """
        try:
            self._context.run(_nothing)
        except RuntimeError:
            raise MessagingException(
                f"{self._name}: a function that the loop has called waits for the loop, which would never end. It is a "
                "callback of a future, or a __del__ method that the garbage collector has called there: let it use "
                "another thread. What it was to send may be sent all the same"
            ) from None

    def _run_handlers(self) -> None:
        """Run the handlers of the signals that have come.

        A handler may take long, and may wait for what the loop brings, or for a thread that waits for that: so this
        thread is away meanwhile. If it comes back in time, signals are put off again, whatever a handler has raised.
        """
        self.go_away()
        try:
            self._signals.release()
        finally:
            try:
                self._signals.hold()
            finally:
                if not self.come_back():
                    self._signals.release()

    def _follow(self, ready: threading.Lock, until: float) -> None:
        """Wait while another thread drives, ready to take over."""
        self._turn.want(ready)
        try:
            # Checked after that: a thread that gives the turn back later wakes one that wants it.
            if not self._turn.is_free or not self._may_be_driven:
                ready.acquire(timeout=min(max(until - self.now(), 0.0), threading.TIMEOUT_MAX))
        finally:
            self._turn.want_no_more()

    def _on_signal(self) -> None:
        """A signal has come while the main thread drives: end its sleep."""
        poller = self._poller
        if poller is not None:
            try:
                poller.wake()
            except OSError:
                pass  # The next call to the loop notices that the descriptors were closed.

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
                if self.closed or self._thread is not me:
                    return
                self._let_go()
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

    def _on_lost(self, error: OSError) -> None:
        LOG.error("%s", self._explain(error))

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
