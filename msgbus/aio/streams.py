"""AsyncStream: the iterator that `AsyncRPCClient.multicall` returns."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from msgbus.aio.interceptors import async_chain, async_only, close_items
from msgbus.aio.task_call import TaskCall
from msgbus.aio.transport import AsyncTransport
from msgbus.base_client import BaseClient
from msgbus.drivers.toolkit.loop import Loop
from msgbus.interceptors import InterceptedRequest
from msgbus.serializer import NoOpSerializer
from msgbus.streams import StreamEnd


class AsyncStream(AsyncIterator[Any]):
    """Iterates over what a remote generator yields. For one task; also an asynchronous context manager.

    The remote generator is closed (its ``finally`` runs) when `aclose` is called, or when the task is cancelled while
    it waits for an item. It is also closed when the iterator is dropped (within half a second), and when this process
    dies (after 15 s).

    While it is open it takes one place of the transport's ``rpc_send_window``, and on the server one of
    ``executor_tasks``, or a thread.
    """

    def __init__(
        self, client: BaseClient, transport: AsyncTransport, ctxt: Any, method: str, kwargs: dict[str, Any]
    ) -> None:
        """Nothing is sent before the iteration begins. `transport` is the client's."""
        self._client = client
        self._transport = transport
        self._ctxt = ctxt
        self._method = method
        self._kwargs = kwargs
        self._is_plain = type(client.serializer) is NoOpSerializer
        self._closed = False
        self._waits = False  # a task waits for the beginning, or for an item
        self._end: StreamEnd | None = None

    async def _begin(self) -> None:
        """Send the request, unless another task closes the stream meanwhile."""
        self._check_alone()
        self._waits = True
        try:
            await self._send_request()
        except BaseException:
            self._close()
            raise
        finally:
            self._waits = False

    def _check_alone(self) -> None:
        if self._waits:
            raise RuntimeError(f"{self!r} is for one task, and another task already waits for its next item")

    async def _send_request(self) -> None:
        client, transport = self._client, self._transport
        self._pending = pending = client._new_stream(self._method)
        self._has_deadline = pending.end != math.inf
        self._call = call = TaskCall(transport, pending, client._content_type, client._fallback)
        with ExitStack() as stack:
            stack.enter_context(await transport.slot(pending.deadline, pending.method, pending.address))
            request = client._stream_request(self._ctxt, self._method, self._kwargs, pending)
            request.reply_to = await transport.inbox(pending.deadline, pending)
            if self._closed:
                return
            message = client._message_of(request, pending)
            try:
                call.send(message)
            except BaseException:
                call.close()
                raise
            self._end = StreamEnd(call, pending, stack.pop_all())

    def __aiter__(self) -> AsyncStream:
        return self

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._end is not None else "not begun"
        return f"<AsyncStream {self._method!r} of {self._client!r}, {state}>"

    async def __anext__(self) -> Any:
        """Wait for the next item.

        What `msgbus.RPCClient.call` raises is raised here too, and the stream is closed then.

        Raises:
            StopAsyncIteration: the remote generator has ended, or the stream was closed.
            RuntimeError: another task waits for the next item.
        """
        if self._closed:
            raise StopAsyncIteration
        if self._end is None:
            await self._begin()
        end = self._end
        if end is None:  # Another task has closed it.
            raise StopAsyncIteration
        pending = self._pending
        if not pending.items or (self._has_deadline and Loop.now() >= pending.end):
            await self._wait_for_item(end)
        item, credit_due = pending.take()
        if credit_due:
            end.send_control("credit")
        if self._is_plain:
            return item
        return self._client.serializer.deserialize_entity(self._ctxt, item)

    async def _wait_for_item(self, end: StreamEnd) -> None:
        self._check_alone()
        self._waits = True
        try:
            end.expect_item()
            await self._call.wait()
        except BaseException:
            self._close()
            raise
        finally:
            self._waits = False
        if self._closed:  # By another task, meanwhile.
            raise StopAsyncIteration
        if not self._pending.items:
            self._close()
            error = self._pending.error
            raise StopAsyncIteration if error is None else error

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._end is not None:
                self._pending.items.clear()
                self._end.close()
                self._call.end_wait()  # Another task may wait for an item.

    async def aclose(self) -> None:
        """Cancel the stream on the server, and drop the items that have not been taken. Idempotent."""
        self._close()

    async def __aenter__(self) -> AsyncStream:
        if self._end is None and not self._closed:
            await self._begin()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._close()

    def __del__(self) -> None:
        # The garbage collector may come at any moment: so this only leaves a note; the loop does the rest.
        end: StreamEnd | None = getattr(self, "_end", None)
        if end is not None:
            end.dropped = True


class InterceptedAsyncStream(AsyncStream):
    """A stream of what a client's interceptors make of the streams with which they proceed.

    They run when the iteration begins.
    """

    _items: AsyncIterator[Any] | None = None
    _begun: Sequence[AsyncStream] = ()

    async def _send_request(self) -> None:
        client = self._client
        self._begun = []
        request = client._intercepted("multicall", self._ctxt, self._method, self._kwargs, client._end_of("multicall"))
        items = await async_chain(client.interceptors, self._proceed)(request)
        self._items = items if isinstance(items, AsyncIterator) else async_only(items)
        if self._closed:  # By another task, meanwhile. What has not begun to iterate closes nothing itself.
            try:
                await close_items(self._items)
            finally:
                self._close()

    async def _proceed(self, request: InterceptedRequest) -> AsyncStream:
        client = self._client._without_interceptors(request)
        stream = AsyncStream(client, self._transport, request.context, request.method, request.args)
        self._begun = [*self._begun, stream]
        await stream._begin()
        return stream

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._items is not None else "not begun"
        return f"<AsyncStream {self._method!r} of {self._client!r}, {state}>"

    async def __anext__(self) -> Any:
        """Get the next item from the interceptors; whatever they raise ends the stream."""
        if self._items is None and not self._closed:
            await self._begin()
        items = self._items
        if self._closed or items is None:  # It may be that another task has closed it.
            raise StopAsyncIteration
        self._check_alone()
        self._waits = True
        try:
            return await anext(items)
        except BaseException:
            try:
                await close_items(items)
            finally:
                self._close()
            raise
        finally:
            self._waits = False

    def _close(self) -> None:
        """Close the streams that were begun, also where another task waits for their next item."""
        self._closed = True
        for stream in self._begun:
            stream._close()

    async def aclose(self) -> None:
        """Close what the interceptors iterate with, and each stream that was begun. Idempotent."""
        items = None if self._closed or self._waits else self._items
        self._closed = True
        try:
            if items is not None:
                await close_items(items)
        finally:
            self._close()

    async def __aenter__(self) -> AsyncStream:
        if self._items is None and not self._closed:
            await self._begin()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()
