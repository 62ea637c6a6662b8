"""LoopThreadExecutor: runs requests on an event loop that has a thread of its own, for servers that have threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextvars import Context
from functools import partial
from typing import Any

from msgbus import current
from msgbus.aio.executor import Event, Item, TaskExecutor
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessagingException, TransportUnavailable
from msgbus.executor import CANCEL_TIMEOUT, Load
from msgbus.foreign import get_logger
from msgbus.server_call import ServerCall

LOG = get_logger(__name__)

LOOK_AGAIN = 1.0
"""Seconds after which who waits for the event loop checks that it has not ended."""


class LoopThreadExecutor:
    """A `TaskExecutor`, and the thread of its event loop. Any thread may use it, as it may use an `Executor`."""

    def __init__(self, process: Callable[[Item], None], name: str, loop: Loop, tasks: int, threads: int) -> None:
        """Start the thread; the arguments are those of `TaskExecutor`.

        Raises:
            TransportUnavailable: the operating system gives no thread.
        """
        self._name = name
        self._made: Future[None] = Future()
        self._make: Callable[[], TaskExecutor] = partial(TaskExecutor, process, name, loop, tasks, threads)
        self._thread = threading.Thread(target=self._work, name=f"{name}-asyncio", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as exc:
            raise TransportUnavailable(f"no thread can be started for {name}: {exc}") from exc
        try:
            self._made.result()
        except OSError as exc:  # Too many files are open.
            raise TransportUnavailable(f"no event loop can be created for {name}: {exc}") from exc

    def _work(self) -> None:
        try:
            with asyncio.Runner() as runner:
                host = runner.get_loop()
                work = host.create_task(self._run())
                while not work.done():
                    self._run_until_done(host, work)
        except BaseException as exc:
            if self._made.done():
                raise
            self._made.set_exception(exc)

    def _run_until_done(self, host: asyncio.AbstractEventLoop, work: asyncio.Task[None]) -> None:
        """Run the event loop until `work` is done, or something has raised what ends programs."""
        try:
            host.run_until_complete(work)
        except (SystemExit, KeyboardInterrupt):  # A task or callback that is not a request's own: that is answered.
            LOG.exception("%s: the event loop goes on, for the other requests", self._name)

    async def _run(self) -> None:
        self._host = asyncio.get_running_loop()
        self._executor = self._make()
        self._ending = asyncio.Event()
        self._made.set_result(None)
        await self._ending.wait()
        await self._executor.wait_for_closers()

    def submit(self, item: Item) -> None:
        """See `TaskExecutor.submit`."""
        self._executor.submit(item)

    def begin(self, context: Context, work: Coroutine[Any, Any, None]) -> None:
        """See `TaskExecutor.begin`."""
        self._executor.begin(context, work)

    async def run_plain(self, func: Callable[..., Any], *args: Any) -> Any:
        """See `TaskExecutor.run_plain`."""
        return await self._executor.run_plain(func, *args)

    async def run_async(self, call: ServerCall, work: Coroutine[Any, Any, Any]) -> Any:
        """See `TaskExecutor.run_async`."""
        return await self._executor.run_async(call, work)

    def make_event(self) -> Event:
        """See `TaskExecutor.make_event`."""
        return self._executor.make_event()

    @property
    def load(self) -> Load:
        """See `TaskExecutor.load`."""
        return self._executor.load

    def reacts(self, timeout: float) -> bool:
        """See `TaskExecutor.reacts`."""
        return self._executor.reacts(timeout)

    def take_backlog(self) -> list[Item]:
        """See `TaskExecutor.take_backlog`."""
        return self._executor.take_backlog()

    def close(self, timeout: float | None) -> int:
        """Wait for what runs, then cancel what still does, and end the thread; see `TaskExecutor.close`.

        If a method calls this, the thread ends when that has returned.
        """
        end = None if timeout is None else Loop.now() + timeout + 2 * CANCEL_TIMEOUT
        work = self._executor.close(timeout)
        try:
            running = self._wait_for(asyncio.run_coroutine_threadsafe(work, self._host), end)
            self._host.call_soon_threadsafe(self._ending.set)
        except (RuntimeError, CancelledError):  # Another thread has closed it meanwhile.
            work.close()
            return 0
        if running is None:
            LOG.warning("%s: an async method blocks the event loop, and cannot be cancelled", self._name)
            return self._executor.unfinished
        if current.running.get() is None:
            self._thread.join(CANCEL_TIMEOUT)  # A method that cannot be cancelled must not keep this one.
        return running

    def _wait_for(self, closed: Future[int], end: float | None) -> int | None:
        """Wait until the event loop has closed the executor. None: it has not until `end`, in seconds of `Loop.now`.

        Raises:
            CancelledError: the event loop has ended first.
        """
        while True:
            left = LOOK_AGAIN if end is None else min(LOOK_AGAIN, max(0.0, end - Loop.now()))
            try:
                return closed.result(left)
            except TimeoutError:
                if not self._thread.is_alive() and not closed.done():
                    raise CancelledError from None
                if end is not None and Loop.now() >= end:
                    return None

    def check_thread(self) -> None:
        """Check that this is not the event loop's thread, on which nobody may wait for its end.

        Raises:
            MessagingException: it is.
        """
        if threading.current_thread() is self._thread:
            raise MessagingException(
                "an async method must not call wait() of its own server, since that would block its event loop: "
                "await asyncio.to_thread(server.wait)"
            )
