"""HostedLoop: the loop of a transport of `msgbus.aio`. A running event loop of asyncio drives it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context
from threading import get_ident
from typing import Any

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.loop import CLOSE_TIMEOUT, Loop
from msgbus.drivers.toolkit.poller import Poller
from msgbus.drivers.toolkit.steps import FOREVER, Call
from msgbus.exceptions import ConfigurationError, MessagingException, TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)


class HostedLoop(Loop):
    """A loop without a thread: its steps are callbacks of the event loop that runs where it is made.

    What the program's tasks send in one turn of the event loop goes out together, in one step after it.

    Other threads may call it as they may any loop. Nobody may wait for it on the thread of the event loop. If that is
    closed first, the next call starts a thread that takes over, so that the driver can still be closed in order.

    Attributes:
        host: the event loop.
        host_thread: the id of the thread on which it ran last, or of the one that has taken over.
    """

    def __init__(self, name: str) -> None:
        """Make a loop that opens nothing yet; `name` is for errors.

        Raises:
            RuntimeError: no event loop runs here.
        """
        self.host = asyncio.get_running_loop()
        self.host_thread = get_ident()
        self._steps = False  # a step is being done
        self._step_is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = FOREVER
        self._ended: list[Callable[[], object]] = []
        self._guests: dict[object, Callable[[], object]] = {}
        self._successor: threading.Thread | None = None  # runs the steps since the event loop was closed
        super().__init__(name)

    def _start_clean(self) -> None:
        super()._start_clean()
        self.awake = False
        self._steps = self._step_is_due = False
        self._timer, self._timer_at = None, FOREVER

    def _forked(self) -> None:
        """In a forked child: the event loop is the parent's, and so is all that this one does."""
        super()._forked()
        self.closed = True

    @property
    def is_here(self) -> bool:
        """Whether this thread runs the steps, and so must not wait for one."""
        return get_ident() == self.host_thread

    def call(self, func: Callable[..., Any], *args: Any) -> bool:
        if self._successor is None and self.host.is_closed():
            self._lose_host()
        return super().call(func, *args)

    def call_last(self, func: Callable[..., Any], *args: Any) -> None:
        super().call_last(func, *args)
        if not self._steps:  # A coroutine of a driver calls it.
            self._request_step()

    def will_step(self) -> bool:
        if self._steps or get_ident() != self.host_thread:
            return self.awake
        self._request_step()
        return True

    def keep_thread(self) -> None:
        """Refuse: the event loop of a library for asyncio cannot run inside another one.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            f"{self._name}: this driver runs its own event loop, so msgbus.aio cannot use it; a driver whose library "
            "needs asyncio has to use msgbus.drivers.toolkit.aio.event_loop_of(loop)"
        )

    def take_turn(self) -> bool:
        return False

    def wait(self, ready: threading.Lock, until: float) -> None:
        if get_ident() == self.host_thread:
            raise MessagingException(
                f"{self._name}: a call on the event loop's own thread would block and wait for the event loop, so it "
                "would wait forever: await it, or use another thread"
            )
        super().wait(ready, until)

    # Starting and ending

    def _start(self) -> None:
        with self._changing:
            if self._thread is not None or self.closed:
                return
            try:
                self._poller = Poller()
            except OSError as exc:
                raise TransportUnavailable(descriptors.not_started(self._name, exc)) from exc
            self._thread = threading.current_thread()  # Which one does not matter: it shows that this was done.
        if get_ident() == self.host_thread:
            self._register()
        else:
            self._on_host(self._register)

    def _register(self) -> None:
        if self._poller is not None:
            # In a context of its own: that of the task that happens to be the first would be kept.
            Context().run(self.host.add_reader, self._poller.fileno(), self._on_readable)
            self._request_step()

    def _on_host(self, func: Callable[[], object]) -> None:
        """Have a function called by the event loop. Any thread."""
        try:
            if get_ident() == self.host_thread:
                self.host.call_soon(func)
            else:
                self.host.call_soon_threadsafe(func)
        except RuntimeError:  # The event loop is closed.
            self._lose_host()

    def _lose_host(self) -> None:
        """The event loop was closed first: have a thread take over, for the rest."""
        with self._changing:
            if self.closed or self._successor is not None:
                return
            if self._thread is None:
                self.closed = True
                return
            self._successor = threading.Thread(target=self._run_alone, name=self._name, daemon=True)
            self._steps = True
            try:
                self._successor.start()
            except RuntimeError:  # There are too many, or the interpreter is ending.
                self.closed = True
        LOG.warning(
            "%s: the event loop was closed before the transport: use 'async with', or await its aclose()", self._name
        )
        if self.closed:
            self._close_poller()

    def _run_alone(self) -> None:
        """On the thread that has taken over."""
        self.host_thread = get_ident()
        while self._close_until is None or not self._is_done():
            self._context.run(self._step, FOREVER if self._close_until is None else self._close_until)
        super()._end()

    def close(self) -> None:
        """End, once all calls were run. It may take a moment, for a driver that is still closing. Any thread."""
        with self._changing:
            if self._close_until is None:
                self._close_until = self.now() + CLOSE_TIMEOUT
            if self._thread is None:
                self.closed = True
        if not self.closed:
            self._calls.append((self._cancel_guests, ()))
            try:
                self._wake_up()
            except TransportUnavailable as exc:
                LOG.warning("%s", exc)
                return
        if self._successor is not None and not self.is_here:
            self._successor.join(2 * CLOSE_TIMEOUT)

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called. Any thread."""
        return self._close_until is not None

    def closing(self) -> asyncio.Future[None]:
        """`close`. Returns a future that is done at the end. On the event loop."""
        self.close()
        ended: asyncio.Future[None] = self.host.create_future()

        def on_end() -> None:
            if not ended.done():  # The task that waits for it may have been cancelled.
                ended.set_result(None)

        if self.closed:
            on_end()
        else:
            self._ended.append(on_end)
        return ended

    def await_end_of(self, guest: object, cancel: Callable[[], object]) -> None:
        """Have the end wait, for a moment, until `forget` is called for this guest. Any thread.

        Args:
            guest: what a driver does on the event loop besides the steps: connecting, or closing a connection.
            cancel: called on the event loop when this loop is closed.
        """
        self._guests[guest] = cancel

    def forget(self, guest: object) -> None:
        """The guest of `await_end_of` has ended, or the end need not wait for it. Any thread."""
        if self._guests.pop(guest, None) is not None:
            self._wake_up()

    def _cancel_guests(self) -> None:
        for cancel in list(self._guests.values()):
            cancel()

    def _is_done(self) -> bool:
        assert self._close_until is not None
        return super()._is_done() and (not self._guests or self.now() >= self._close_until)

    def _end(self) -> None:
        if self._poller is not None:
            self.host.remove_reader(self._poller.fileno())
        if self._timer is not None:
            self._timer.cancel()
        super()._end()
        while self._ended:
            self._ended.pop()()

    # Steps

    def _wake_up(self, entry: Call | None = None) -> None:
        if self._poller is None or self.closed:
            return
        self.awake = True
        if self._successor is not None:
            self._wake_successor(entry)
        elif get_ident() == self.host_thread:
            self._request_step()
        else:
            self._on_host(self._request_step)

    def _wake_successor(self, entry: Call | None) -> None:
        with self._changing:
            if self._poller is None:
                return
            try:
                self._poller.wake()
            except OSError as exc:
                self.awake = False  # The next call finds out for itself.
                if entry is None or not self._was_run(entry):
                    raise self._explain(exc) from exc

    def _request_step(self) -> None:
        """Do a step when the callbacks that are due now have run. On the event loop's thread."""
        if not self._step_is_due and self._successor is None:
            self._step_is_due = True
            self._on_host(self._step_soon)

    def _step_soon(self) -> None:
        if self._step_is_due:  # Otherwise it was done by another callback.
            self._run_step(False)

    def _on_readable(self) -> None:
        self._run_step(True)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, FOREVER
        self._run_step(False, is_over=self.lingers)

    def runs_here(self) -> bool:
        """Whether the event loop runs on this thread, now. It need not be the thread on which it ran at first."""
        if asyncio.get_running_loop() is not self.host:
            return False
        self.host_thread = get_ident()
        return True

    def _run_step(self, looks: bool, *, is_over: bool = False) -> None:
        """Do a step, and see to it that the next one comes.

        Args:
            looks: there is something to read.
            is_over: the time for which the loop has lingered is over.
        """
        self._step_is_due = False
        self.host_thread = get_ident()  # The program may run the event loop on another thread than before.
        if self._poller is None:
            return
        try:
            # What a handler raises is for the program, as with Ctrl-C: within a step it would only be logged.
            holds = self.hold_signals()
        except BaseException:
            self._request_step()
            raise
        self.awake = self._steps = True
        try:
            rest = self._context.run(self._step_once, self._poller, looks, is_over)
            self._steps = False
            if self._close_until is not None and self._is_done():
                self._end()
            elif self._calls or not rest:
                self._request_step()
            else:
                self._set_timer(rest)
        finally:
            self._steps = False
            if holds:
                self.release_signals()

    def _step_once(self, poller: Poller, looks: bool, is_over: bool) -> float:
        """Read, run calls and timers, and write. Returns how many seconds may pass until the next step."""
        # What is due may be a check for silence: if the event loop was busy for long, what has come is still unread.
        looks = looks or self._is_due()
        readable = poller.sleep(0.0) if looks else []
        had_work = bool(readable or self._calls)
        self._work(poller, readable)
        rest = self._write_gathered(is_over and not had_work)
        self._fall_asleep()
        return rest

    def _is_due(self) -> bool:
        return bool(self._timers) and self._timers[0][0] <= self.now()

    def _set_timer(self, rest: float) -> None:
        until = self.now() + rest
        if self._timers:
            until = min(until, self._timers[0][0])
        if self._close_until is not None:
            until = min(until, self._close_until)
        if until < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = until
            self._timer = self.host.call_later(max(0.0, until - self.now()), self._on_timer, context=Context())
