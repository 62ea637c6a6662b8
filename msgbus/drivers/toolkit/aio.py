"""asyncio on the thread of a `Loop`, for drivers whose library is made for asyncio: without a second thread."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVarTuple

from msgbus.drivers.toolkit.loop import Loop
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child

LOG = get_logger(__name__)

_Args = TypeVarTuple("_Args")

CANCEL_TIMEOUT = 0.2
"""Seconds for the remaining tasks to end after a cancellation. Some libraries swallow one, so they are cancelled up to
`CANCEL_TRIES` times."""
CANCEL_TRIES = 3
_inherited: list[AsyncioLoop] = []
"""In a forked child: kept and never used, since closing them would close the parent's descriptors."""


class AsyncioLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio for one connection.

    Until `attach` it is an event loop like any other: `BrokerDriver.dial`, which may block, opens the connection with
    `run_until_complete`. From `attach` on the transport's loop runs it, one step at a time, whenever it has something
    to read or a timer is due. So coroutines run on that loop's thread, between the calls of the toolkit, and may call
    sources, lines and outgoing messages directly. A method of a driver that is called there may begin a coroutine with
    `spawn`, and set events and futures; other threads use `Loop.call`.

    In a forked child it belongs to the parent, and is not run. The sockets of its transports stay open there:
    `Session.abandon` has to let go of them, see "Write a driver".
    """

    def __init__(self, loop: Loop) -> None:
        """Make one for the transport's loop. Any thread."""
        self._outer = loop
        loop.keep_thread()  # An event loop of asyncio runs on one thread, which may have no other that runs.
        self._attached = False
        self._is_parents = False
        self._step_is_due = False
        self._spawned: set[asyncio.Task[Any]] = set()
        self._poll = selectors.EpollSelector()
        super().__init__(self._poll)
        call_in_child(self._forked)

    def attach(self) -> None:
        """Have it run by the transport's loop from now on. On that loop's thread."""
        self._attached = True
        self._outer.watch(self._poll.fileno(), self._step)
        self._request_step()

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run a coroutine; an error that it ends with is logged. On the loop's thread."""
        task = self.create_task(work)
        self._spawned.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._spawned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("a coroutine of a driver has failed", exc_info=error)

    def end(self, last: Coroutine[Any, Any, object], timeout: float) -> None:
        """Run a last coroutine; after it, or after the timeout, cancel all others, and close.

        On the loop's thread, where it returns at once; before `attach` on any thread, where it returns at the end.
        """
        if self._attached:
            self.spawn(self._finish(last, timeout)).add_done_callback(lambda _: self._outer.call(self.close))
        else:
            self.run_until_complete(self._finish(last, timeout))
            self.close()

    async def _finish(self, last: Coroutine[Any, Any, object], seconds: float) -> None:
        await asyncio.wait({self.spawn(last)}, timeout=seconds)
        for _ in range(CANCEL_TRIES):
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others, timeout=CANCEL_TIMEOUT)
        await asyncio.sleep(0)  # A closed transport closes its socket in the next step.

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
