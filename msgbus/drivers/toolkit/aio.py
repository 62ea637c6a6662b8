"""asyncio for drivers whose library is made for it: on the thread of the transport's loop, without a second one."""

from __future__ import annotations

import asyncio
import selectors
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from contextvars import Context
from threading import get_ident
from typing import Any, TypeVar, TypeVarTuple

from msgbus.drivers.toolkit.hosted import HostedLoop
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import CallCancelled
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child

LOG = get_logger(__name__)

T = TypeVar("T")
_Args = TypeVarTuple("_Args")

CANCEL_TIMEOUT = 0.2
"""Seconds for the remaining tasks to end after a cancellation. Some libraries swallow one, so they are cancelled up to
`CANCEL_TRIES` times."""
CANCEL_TRIES = 3
CLOSED_CHECK = 1.0
"""Seconds between two checks whether an event loop that is waited for was closed."""
_inherited: list[AsyncioLoop] = []
"""In a forked child: kept and never used, since closing them would close the parent's descriptors."""


def event_loop_of(loop: Loop) -> DriverEventLoop:
    """An event loop for one connection, on the thread of the transport's loop. Any thread; `dial` calls it.

    With a transport of `msgbus.aio` it is the program's own event loop. Otherwise it is one that the transport's loop
    runs, between its other work.
    """
    return HostEventLoop(loop) if isinstance(loop, HostedLoop) else AsyncioLoop(loop)


class DriverEventLoop(ABC):
    """The event loop on which a library for asyncio does the work of one connection; `event_loop_of` makes it.

    `BrokerDriver.dial`, which may block, opens the connection with `run`. From `attach` on coroutines run on the thread
    of the transport's loop, between the calls of the toolkit, and may call sources, lines and outgoing messages
    directly. A method of a driver that is called there may begin a coroutine with `spawn`, and set events and futures;
    other threads use `Loop.call`.

    In a forked child it belongs to the parent, and is not run. The sockets of its transports stay open there:
    `Session.abandon` has to let go of them, see "Write a driver".
    """

    _spawned: set[asyncio.Task[Any]]

    @abstractmethod
    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine before `attach`, and return its result. Not on the thread of the transport's loop.

        Raises:
            Exception: the coroutine has raised it.
            CallCancelled: the program has ended its event loop.
        """

    @abstractmethod
    def attach(self) -> None:
        """The connection is used from now on. On the thread of the transport's loop."""

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run a coroutine; an error that it ends with is logged. On the loop's thread, after `attach`."""
        task = self._create_task(work)
        self._spawned.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._spawned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("a coroutine of a driver has failed", exc_info=error)

    @abstractmethod
    def create_future(self) -> asyncio.Future[Any]:
        """A future for coroutines. Any thread, but only the loop's may set it."""

    @abstractmethod
    def end(self, last: Coroutine[Any, Any, object], timeout: float) -> None:
        """Run a last coroutine, which closes what the library has opened; then, or after the timeout, cancel the rest.

        The rest is all that was spawned. It is also the library's own tasks, unless the event loop is the program's:
        there the last coroutine has to end them.

        On the loop's thread it returns at once; before `attach`, on any other thread, at the end.
        """

    async def _finish(self, last: Coroutine[Any, Any, object], seconds: float) -> None:
        await asyncio.wait({self.spawn(last)}, timeout=seconds)
        for _ in range(CANCEL_TRIES):
            others = self._rest() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others, timeout=CANCEL_TIMEOUT)
        await asyncio.sleep(0)  # A closed transport closes its socket in the next step.

    @abstractmethod
    def _create_task(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Begin a task."""

    @abstractmethod
    def _rest(self) -> set[asyncio.Task[Any]]:
        """The tasks that `end` cancels."""


class HostEventLoop(DriverEventLoop):
    """The program's own event loop, which also drives the transport's loop."""

    def __init__(self, loop: HostedLoop) -> None:
        """Use the event loop of a transport's loop. Any thread."""
        self._loop = loop
        self._host = loop.host
        self._spawned = set()
        self._opening: asyncio.Task[Any] | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self._loop.await_end_of(self, self._cancel)  # until `attach` or the end of `end`
        try:
            return self._run(self._open(work))
        except CallCancelled:
            work.close()
            raise

    async def _open(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closing:  # What tells it to give up came before there was anything to cancel.
            work.close()
            raise asyncio.CancelledError
        self._opening = asyncio.current_task()
        try:
            return await work
        finally:
            self._opening = None

    def _cancel(self) -> None:
        if self._opening is not None:
            self._opening.cancel()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, and wait for it. On another thread."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._host)
        except RuntimeError as exc:
            work.close()
            raise CallCancelled("the program has closed its event loop") from exc
        while not wait([future], CLOSED_CHECK).done:
            if self._host.is_closed():
                raise CallCancelled("the program has closed its event loop")
        return future.result()

    def attach(self) -> None:
        self._loop.forget(self)

    def create_future(self) -> asyncio.Future[Any]:
        return self._host.create_future()

    def end(self, last: Coroutine[Any, Any, object], timeout: float) -> None:
        work = self._finish(last, timeout)
        if get_ident() == self._loop.host_thread and not self._host.is_closed():
            self._loop.await_end_of(self, int)
            self._host.create_task(work).add_done_callback(lambda _: self._loop.forget(self))
            return
        try:
            self._run(work)
        except CallCancelled:
            last.close()  # Nothing can be closed in order any more.
        finally:
            self._loop.forget(self)

    def _create_task(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        return self._host.create_task(work)

    def _rest(self) -> set[asyncio.Task[Any]]:
        return self._spawned.copy()


class AsyncioLoop(asyncio.SelectorEventLoop, DriverEventLoop):
    """An event loop of its own for one connection.

    Until `attach` it is an event loop like any other. From then on the transport's loop runs it, one step at a time,
    whenever it has something to read or a timer is due.
    """

    def __init__(self, loop: Loop) -> None:
        """Make one for the transport's loop. Any thread."""
        self._outer = loop
        loop.keep_thread()  # An event loop of asyncio runs on one thread, which may have no other that runs.
        self._attached = False
        self._is_parents = False
        self._step_is_due = False
        self._spawned = set()
        self._poll = selectors.EpollSelector()
        super().__init__(self._poll)
        call_in_child(self._forked)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.run_until_complete(work)

    def attach(self) -> None:
        """Have it run by the transport's loop from now on. On that loop's thread."""
        self._attached = True
        self._outer.watch(self._poll.fileno(), self._step)
        self._request_step()

    def end(self, last: Coroutine[Any, Any, object], timeout: float) -> None:
        if self._attached:
            self.spawn(self._finish(last, timeout)).add_done_callback(lambda _: self._outer.call(self.close))
        else:
            self.run_until_complete(self._finish(last, timeout))
            self.close()

    def _create_task(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        return self.create_task(work)

    def _rest(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks(self)

    def close(self) -> None:
        """Close at once. On the loop's thread, and not within a coroutine: `end` is for that."""
        if self._attached:
            self._attached = False
            self._outer.unwatch(self._poll.fileno())
        super().close()

    def __del__(self) -> None:
        if not self._is_parents:
            super().__del__()

    def _forked(self) -> None:
        self._attached = False
        self._is_parents = True
        _inherited.append(self)

    # Steps

    def _step(self) -> None:
        """Run what is ready, and return."""
        self._step_is_due = False
        if self._attached:
            super().call_soon(self.stop)
            self.run_forever()

    def _request_step(self) -> None:
        if self._attached and not self._step_is_due:
            self._step_is_due = True
            self._outer.call(self._step)

    # What asyncio asks of an event loop

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        # Tasks of a library that nobody awaits end with an error when the connection breaks. `spawn` logs its own.
        if "future" in context:
            LOG.debug("in a task of a driver's library: %s", context)
        else:
            super().default_exception_handler(context)

    def time(self) -> float:
        return self._outer.now()

    def call_soon(
        self, callback: Callable[[*_Args], object], *args: *_Args, context: Context | None = None
    ) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        self._request_step()
        return handle

    def call_at(
        self, when: float, callback: Callable[[*_Args], object], *args: *_Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = super().call_at(when, callback, *args, context=context)
        self._wait_for(timer)
        return timer

    def _wait_for(self, timer: asyncio.TimerHandle) -> None:
        self._outer.call_later(max(0.0, timer.when() - self.time()), self._on_due, timer)

    def _on_due(self, timer: asyncio.TimerHandle) -> None:
        if timer.cancelled():
            return
        if timer.when() > self.time():  # because of rounding
            self._wait_for(timer)
        else:
            self._step()
