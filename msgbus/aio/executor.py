"""TaskExecutor: runs a server's requests as tasks of an event loop."""

from __future__ import annotations

import asyncio
import threading
from asyncio import _get_running_loop  # That of this thread, or None. The program may run it on another one later.
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from msgbus import current, forking
from msgbus.closing import end_child
from msgbus.current import RunningRequest
from msgbus.drivers.base import Delivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.executor import CANCEL_TIMEOUT, Busy, Executor, Interrupted, Load, call_plain
from msgbus.foreign import get_logger
from msgbus.server_call import ServerCall
from msgbus.urgent import holds_urgent

LOG = get_logger(__name__)

NOT_AWAITED = "the server was stopped while it ran, and has not waited for it any longer"
NOT_BEGUN = "the server was stopped before a thread was free for it"

Item = Delivery | ServerCall
Job = Callable[[], None]


class TaskExecutor:
    """Each request is a task; what is plain in it (a method, a generator) runs on a thread of a pool meanwhile.

    `submit` may be called on any thread, all else on that of the event loop.
    """

    def __init__(self, process: Callable[[Item], None], name: str, loop: Loop, tasks: int, threads: int) -> None:
        """On the thread of the event loop.

        Args:
            process: is called with each item, on the event loop.
            name: of the threads.
            loop: the transport's.
            tasks: the most requests that run at a time; further ones wait.
            threads: the most plain methods that do.

        Raises:
            RuntimeError: no event loop runs here.
        """
        self._host = asyncio.get_running_loop()
        self._process = process
        self._limit = tasks
        self._tasks: dict[asyncio.Task[None], Context] = {}
        self._closers: set[RunningRequest | None] = set()  # whose methods wait for the end of the server
        self._ended = False
        self._forks = forking.forks
        self._backlog: deque[Item] = deque()
        self._is_looking = False
        self._threads: Executor[Job] = Executor(threads, _run, name, loop)

    # Requests

    def submit(self, item: Item) -> None:
        """Have an item run, as soon as there is room for it, or at once if it is urgent. Any thread."""
        if len(self._tasks) + len(self._backlog) >= self._limit and holds_urgent(item):
            _call_soon(self._host, self._run_urgent, item)
            return
        self._backlog.append(item)
        if _get_running_loop() is self._host:
            self._run_backlog()
        elif not self._is_looking:
            self._is_looking = True
            try:
                self._host.call_soon_threadsafe(self._run_backlog)
            except RuntimeError:  # It was closed. What is not begun is given back with its subscription.
                self._is_looking = False

    def _run_backlog(self) -> None:
        self._is_looking = False
        while len(self._tasks) < self._limit and not self._ended:
            try:
                item = self._backlog.popleft()
            except IndexError:  # Not checked before: `take_backlog` may empty it meanwhile.
                return
            self._run_item(item)

    def _run_urgent(self, item: Item) -> None:
        if self._ended:
            self._backlog.append(item)
        else:
            self._run_item(item)

    def _run_item(self, item: Item) -> None:
        try:
            self._process(item)
        except BaseException:  # It must not cost the others their turn.
            LOG.exception("a request could not be begun")

    def begin(self, context: Context, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task, in a context."""
        task = self._host.create_task(work, context=context)
        self._tasks[task] = context
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("a request ended with an error", exc_info=error)
        if self._backlog:
            self._run_backlog()

    async def run_plain(self, func: Callable[..., Any], *args: Any) -> Any:
        """Call a function on a thread, and return its value.

        It runs in a copy of this context. What it sets there, this context has afterwards.

        Raises:
            Interrupted: the server has stopped, and waits for it no longer. If no thread has begun it, none does.
        """
        task = asyncio.current_task(self._host)
        assert task is not None
        done: asyncio.Future[Any] = self._host.create_future()
        waiting = [done]  # until a thread takes it
        context = copy_context()
        self._threads.submit(partial(self._call, waiting, partial(context.run, call_plain, func, *args)))
        try:
            return await done
        except asyncio.CancelledError:
            if task.cancelling() == 0:  # The function has raised it.
                raise
            if waiting:
                raise Interrupted(NOT_BEGUN, begun=False) from None
            raise Interrupted(NOT_AWAITED) from None  # It goes on, and nobody waits for it.
        finally:
            if not done.cancelled():
                _take_over(context)
            del done, waiting  # An exception that it holds refers to this frame.

    def _call(self, waiting: list[asyncio.Future[Any]], func: Callable[[], Any]) -> None:
        """On a thread of the pool."""
        done = waiting.pop()
        if done.cancelled():  # Checked last: who cancels it looks afterwards whether a thread has taken it.
            return
        try:
            result, error = func(), None
        except BaseException as exc:  # sys.exit() too: somebody waits for the answer
            result, error = None, exc
        if self._forks != forking.forks:  # The method has forked, and this is the child.
            end_child(error)
        try:
            self._host.call_soon_threadsafe(_finish, done, result, error)
        except RuntimeError:
            LOG.warning("the event loop was closed while a plain method ran")
        finally:
            del done, error  # The error refers to this frame and to those that called it.

    async def run_async(self, call: ServerCall, work: Coroutine[Any, Any, Any]) -> Any:
        """Await what an ``async`` method does; see `msgbus.workers.Tasks`."""
        task = asyncio.current_task(self._host)
        assert task is not None
        call.interrupt = partial(self._interrupt, task)
        try:
            if call.cancelled:
                work.close()
                raise asyncio.CancelledError
            return await work
        except asyncio.CancelledError:
            if call.cancelled or task.cancelling() == 0:  # The method may have cancelled something of its own.
                raise
            raise Interrupted(NOT_AWAITED) from None
        finally:
            call.interrupt = None

    def _interrupt(self, task: asyncio.Task[None]) -> None:
        if _get_running_loop() is self._host:
            task.cancel()
        else:
            _call_soon(self._host, task.cancel)

    def make_event(self) -> Event:
        """What a coroutine waits with; any thread may set it."""
        return Event(self._host)

    # The end

    @property
    def load(self) -> Load:
        """What the tasks, and the threads for plain methods, are occupied with. Any thread."""
        return self._threads.load._replace(tasks=Busy(len(self._tasks), self._limit, len(self._backlog)))

    def reacts(self, timeout: float) -> bool:
        """Whether the event loop does, in so many seconds. Any thread."""
        if _get_running_loop() is self._host:
            return True
        reacted = threading.Event()
        try:
            self._host.call_soon_threadsafe(reacted.set)
        except RuntimeError:  # It was closed.
            return False
        return reacted.wait(timeout)

    def take_backlog(self) -> list[Item]:
        """Remove and return the items that have not begun. Any thread."""
        taken: list[Item] = []
        while True:
            try:
                taken.append(self._backlog.popleft())
            except IndexError:
                return taken

    @property
    def unfinished(self) -> int:
        """How many requests run, or have not begun. Any thread."""
        return len(self._tasks) + len(self._backlog)

    async def close(self, timeout: float | None) -> int:
        """Wait for what runs, then cancel what still does.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        A method may call this, also from a task or thread of its own that has a copy of its context. It does not wait
        for its own request, nor for others that wait in the same way.

        Returns:
            how many were still running then, or had not begun.
        """
        own = current.running.get()
        if all(context.get(current.running) is not own for context in self._tasks.values()):
            own = None  # The request is another server's, or there is none.
        if own is not None:
            self._closers.add(own)
        end = None if timeout is None else Loop.now() + timeout
        try:
            # Anew each time: one that ends may let another one begin.
            while others := self._others(own):
                left = None if end is None else max(0.0, end - Loop.now())
                await asyncio.wait(others, timeout=left)
                if left == 0.0:
                    break
        except BaseException:
            if own is not None:
                self._closers.discard(own)
            raise
        self._ended = True
        await asyncio.sleep(0)  # A task that is cancelled before its first step could not settle its request.
        running = self._others(own)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=CANCEL_TIMEOUT)
        self._threads.close(0)
        return len(running) + len(self._backlog)

    def _others(self, own: RunningRequest | None) -> list[asyncio.Task[None]]:
        """The tasks that `close` waits for, where the request `own` calls it."""
        if own is None:
            return list(self._tasks)
        return [task for task, context in self._tasks.items() if context.get(current.running) not in self._closers]

    async def wait_for_closers(self) -> None:
        """Wait for the requests that have called `close`: they have still to be answered."""
        tasks = [task for task, context in self._tasks.items() if context.get(current.running) in self._closers]
        if tasks:
            await asyncio.wait(tasks)


class Event:
    """What a coroutine waits with."""

    def __init__(self, host: asyncio.AbstractEventLoop) -> None:
        """For coroutines of `host`."""
        self._host = host
        self._event = asyncio.Event()

    def set(self) -> None:
        """End the wait, or the next one. Any thread."""
        if _get_running_loop() is self._host:
            self._event.set()
        else:
            _call_soon(self._host, self._event.set)

    async def wait(self, seconds: float) -> None:
        """Wait for `set`, but not longer than so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            pass
        self._event.clear()


def _call_soon(host: asyncio.AbstractEventLoop, func: Callable[..., object], *args: Any) -> None:
    """Have a function called by an event loop, unless that is closed: then nothing waits there any more."""
    try:
        host.call_soon_threadsafe(func, *args)
    except RuntimeError:
        LOG.debug("the event loop of a server was closed")


def _take_over(context: Context) -> None:
    """Set here what was set in a copy of this context."""
    for var, value in context.items():
        if var.get(None) is not value:
            var.set(value)


def _run(job: Job) -> None:
    job()


def _finish(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
