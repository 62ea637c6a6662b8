"""InterceptedTasks: runs the methods of requests with the interceptors of a server that has an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from typing import Any

from msgbus import forking
from msgbus.aio.interceptors import AsyncInterceptor, AsyncProceed, async_chain, async_only, close_items
from msgbus.closing import end_child
from msgbus.dispatcher import ExpectedException, RPCDispatcher
from msgbus.executor import Interrupted
from msgbus.intercepted_methods import ExpectedErrors, is_built_in, request_for, take_changes
from msgbus.interceptors import InterceptedRequest, Once
from msgbus.method_runner import MethodRunner, NotAccepted, Unwanted, only
from msgbus.server_call import ServerCall
from msgbus.workers import Tasks, Workers

_END = object()

Items = AsyncGenerator[Any, None]


class InterceptedTasks(MethodRunner):
    """Runs ``async`` interceptors in the request's task, around ``async`` methods and around plain ones.

    What is plain runs on a thread as ever, and cannot be interrupted; an interceptor can be, wherever it awaits. Under
    at_most_once a request is accepted after its interceptors, when there is a thread for its method.
    """

    _tasks: Tasks

    def __init__(
        self, dispatcher: RPCDispatcher, workers: Workers, tasks: Tasks, interceptors: Sequence[AsyncInterceptor]
    ) -> None:
        """`interceptors`: the first is the outermost."""
        super().__init__(dispatcher, workers, tasks)
        self._interceptors = interceptors

    async def run(self, call: ServerCall, streams: bool = False) -> Any:
        """As `MethodRunner.run`."""
        if is_built_in(call):
            return await super().run(call, streams)
        try:
            result = await self._tasks.run_async(call, self._run_chain(call, streams))
        except BaseException as exc:
            if isinstance(exc, Interrupted) and not call.at_least_once:
                exc.begun = call.accepted  # An interceptor may have been interrupted that has not proceeded.
            if call.owner.forks != forking.forks:
                end_child(exc)
            raise
        if call.owner.forks != forking.forks:
            end_child(None)
        return result

    async def _run_chain(self, call: ServerCall, streams: bool) -> Any:
        run, once, expected = super().run, Once(), ExpectedErrors()
        items: Any = only(None)
        shown: Items | None = None
        not_run: NotAccepted | Unwanted | Interrupted | None = None

        async def last(request: InterceptedRequest) -> Any:
            nonlocal items, shown, not_run
            once.use(repr(request.method))
            take_changes(call, request)
            interrupt, call.interrupt = call.interrupt, None
            try:
                result = await run(call, streams)
            except (NotAccepted, Unwanted, Interrupted) as exc:
                if not isinstance(exc, Interrupted) or not exc.begun:
                    not_run = exc
                raise asyncio.CancelledError from None
            finally:
                call.interrupt = interrupt
            if not streams:
                return result
            if isinstance(result, AsyncGenerator):
                items, shown = result, _each_unwrapped(result, expected)
            else:
                items = result if isinstance(result, Generator) else only(result)
                shown = _each_unwrapped(_each_on_thread(items, self._workers.run_plain), expected)
            return shown

        try:
            result = await async_chain(self._interceptors, last, partial(_around, expected))(request_for(call, streams))
        except BaseException as exc:
            expected.restore(exc)
            raise
        finally:
            once.end()
            if not_run is not None:  # Whatever the interceptors have made of that.
                raise not_run
        if not streams:
            return result
        if result is shown:
            return items
        restored = _each_restored(result, shown, expected)
        await anext(restored)
        return restored


def _around(expected: ExpectedErrors, proceed: AsyncProceed) -> AsyncProceed:
    async def unwrapped(request: InterceptedRequest) -> Any:
        try:
            return await proceed(request)
        except ExpectedException as exc:
            raise expected.unwrap(exc) from None

    return unwrapped


async def _each_unwrapped(items: Items, expected: ExpectedErrors) -> Items:
    """A method's items, with its exceptions unwrapped."""
    try:
        async with aclosing(items):
            async for item in items:
                yield item
    except ExpectedException as exc:
        raise expected.unwrap(exc) from None


async def _each_on_thread(
    items: Generator[Any, Any, Any], run_plain: Callable[..., Awaitable[Any]]
) -> AsyncGenerator[Any, None]:
    """The items of a plain generator, each of which is made on a thread."""
    context = copy_context()  # All steps of a generator share one.
    lock = threading.Lock()

    def step(function: Callable[..., Any], *args: Any) -> Any:
        with lock:  # Where this was interrupted, a thread may still be making an item.
            return context.run(function, *args)

    try:
        while (item := await run_plain(step, next, items, _END)) is not _END:
            yield item
    except Interrupted:
        raise asyncio.CancelledError from None
    finally:
        await run_plain(step, items.close)


async def _each_restored(result: Any, shown: Items | None, expected: ExpectedErrors) -> Items:
    """The items that interceptors have made of those of the method. Both are closed in any case.

    The first item is a None for nobody, to be taken before this is given out: to close a generator that has not begun
    is to run nothing of it.
    """
    items = result if isinstance(result, AsyncIterator) else async_only(result)
    try:
        yield None
        async for item in items:
            yield item
    except BaseException as exc:
        expected.restore(exc)
        raise
    finally:
        try:
            await close_items(items)
        finally:
            await close_items(shown)
