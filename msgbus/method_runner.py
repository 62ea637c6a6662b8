"""MethodRunner: runs the methods of requests on a server's workers, and what they return: generators, and streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import Any

from msgbus import forking
from msgbus.awaitables import PLAIN, refuse_awaitable
from msgbus.closing import end_child
from msgbus.dispatcher import RPCDispatcher, each_plain
from msgbus.drivers.toolkit.loop import Loop
from msgbus.server_call import ServerCall
from msgbus.stream_sender import TURN, yield_to_others
from msgbus.urgent import is_urgent
from msgbus.workers import Tasks, Workers

TASK_CANCELLED = "its task was cancelled, by the method itself or by the program"
"""Why a method was interrupted, where its server has not been stopped."""


class Unwanted(Exception):
    """When a thread was free for a plain method, its client did not want it any more."""


class NotAccepted(Exception):
    """A request under at_most_once could not be accepted, and was not run: its connection was lost."""


class MethodRunner:
    """Runs requests' methods, wherever they have to run: plain ones on threads, those that are async as tasks.

    Its coroutines wait only on an event loop: on threads, which run plain methods alone, they run to their end at once.
    """

    def __init__(self, dispatcher: RPCDispatcher, workers: Workers, tasks: Tasks | None) -> None:
        """`dispatcher` finds and calls the methods. Those that are async need `tasks`."""
        self._dispatcher = dispatcher
        self._workers = workers
        self._tasks = tasks

    async def run(self, call: ServerCall, streams: bool = False) -> Any:
        """Run a request's method, and return its value. Of a generator that is the last item.

        Under at_most_once the request is accepted just before: so the prefetch bounds those that wait for a thread too.

        A forked child that comes back from it ends: the parent answers and settles the request.

        Args:
            call: the request.
            streams: return a generator as it is; its items are to be sent with `stream`.

        Raises:
            Unwanted: its client did not want it any more when there was a thread for it.
            NotAccepted: it could not be accepted.
            Interrupted: the server has stopped, and waits for it no longer.
            BaseException: whatever the dispatcher or the method raises.
        """
        dispatcher, tasks = self._dispatcher, self._tasks
        try:
            if tasks is not None and dispatcher.runs_async(call.request):
                accept(call)
                result = await tasks.run_async(call, dispatcher.dispatch_async(call.request))
                if not streams and type(result) not in PLAIN and isinstance(result, AsyncGenerator):
                    result = await tasks.run_async(call, _last_of_async(result))
            elif tasks is not None and is_urgent(call.request):  # It never waits, and all threads may be busy.
                result = self._run_plain(call, streams)
            else:
                result = await self._workers.run_plain(self._run_plain, call, streams)
        except BaseException as exc:
            if call.owner.forks != forking.forks:
                end_child(exc)
            raise
        if call.owner.forks != forking.forks:
            end_child(None)
        return result

    def _run_plain(self, call: ServerCall, streams: bool) -> Any:
        if self._tasks is not None:  # It may have waited for a thread.
            if call.cancelled:
                raise Unwanted("was cancelled by its client before it began, and was not run")
            if call.deadline is not None and call.deadline <= Loop.now():
                raise Unwanted("could not begin before its deadline, and was not run")
        accept(call)
        result = self._dispatcher.dispatch(call.request)
        if type(result) not in PLAIN:
            method = call.request.method
            refuse_awaitable(f"the method {method!r} returned", result)  # It may be a user's dispatcher.
            if isinstance(result, Generator) and not streams:
                return _last_of(each_plain(method, result), call)
        return result

    def stream(self, call: ServerCall, result: Any) -> Awaitable[None]:
        """Send the items of a generator that `run` has returned, or another value as the only item. To be awaited.

        Raises:
            BaseException: what the generator raises.
        """
        if self._tasks is not None and isinstance(result, AsyncGenerator):
            return self._tasks.run_async(call, call.stream_async(result, self._tasks.make_event()))
        return self._workers.run_plain(call.stream, result if isinstance(result, Generator) else only(result))


def accept(call: ServerCall) -> None:
    """Accept a request that its policy has accepted before it runs. Interceptors may have done so already.

    Raises:
        NotAccepted: its connection was lost.
    """
    if not call.at_least_once and not call.accepted:
        call.accepted = call.delivery.accept()
        if not call.accepted:
            raise NotAccepted


def _last_of(items: Generator[Any, Any, Any], call: ServerCall) -> Any:
    """Run a generator for a client that wants one value: the last."""
    last = None
    try:
        for item in items:
            last = item
            if call.cancelled:
                break
    finally:
        items.close()
    return last


async def _last_of_async(items: AsyncGenerator[Any, None]) -> Any:
    """As `_last_of`, for an asynchronous generator: when the client cancels the call, this is cancelled."""
    last = None
    try:
        count = 0
        async for item in items:
            last = item
            count += 1
            if count % TURN == 0:
                await yield_to_others()
    finally:
        await items.aclose()
    return last


def only(value: Any) -> Generator[Any, None, None]:
    """The items of a method that returns one value where a stream is wanted."""
    yield value
