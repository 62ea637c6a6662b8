"""Driving: which thread does a loop's steps, and how threads wait for what the loop brings."""

from __future__ import annotations

import threading
from abc import abstractmethod
from concurrent.futures import Future
from contextvars import Context
from threading import get_ident
from typing import Any

from msgbus.drivers.toolkit.futures import forget_callback
from msgbus.drivers.toolkit.signals import HeldSignals
from msgbus.drivers.toolkit.steps import Call, Steps
from msgbus.drivers.toolkit.turn import Turn, unlock
from msgbus.exceptions import MessagingException


class Driving(Steps):
    """Threads take turns in doing the steps. One that waits drives meanwhile, if no other does.

    `Loop` adds the loop's own thread, which drives when no other thread does.
    """

    def __init__(self, name: str) -> None:
        """`name` is the loop's, for errors."""
        self._name = name
        super().__init__()

    def _start_clean(self) -> None:
        super()._start_clean()
        self._context = Context()
        self._signals = HeldSignals(self._on_signal)
        self._turn = Turn()
        self._may_be_driven = False  # by other threads than the loop's own
        self._main_thread = threading.main_thread().ident

    @property
    def is_here(self) -> bool:
        """Whether this thread drives the loop now."""
        return self._turn.owner == get_ident()

    @abstractmethod
    def _wake_up(self, entry: Call | None = None) -> None:
        """Have the driving thread, or else the loop's own, do what there is to do."""

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
            self._context.run(get_ident)  # Any function: a step has entered the context, which cannot be entered twice.
        except RuntimeError:
            raise MessagingException(
                f"{self._name}: a function that the loop has called waits for the loop itself, so it would wait "
                "forever. It is a callback of a future, or a __del__ method that the garbage collector has called "
                "there: let it use another thread. Its message may be sent anyway"
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
