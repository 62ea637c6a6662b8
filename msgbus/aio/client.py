"""AsyncRPCClient: the verbs, for tasks. TaskCall: a call for whose outcome a task waits."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Iterable, Sequence
from functools import partial
from typing import Any

from msgbus.aio.casts import AsyncCasts
from msgbus.aio.gathering import AsyncGathering
from msgbus.aio.interceptors import AsyncInterceptor, async_chain
from msgbus.aio.streams import AsyncStream, InterceptedAsyncStream
from msgbus.aio.task_call import TaskCall
from msgbus.aio.transport import AsyncTransport, check_transport
from msgbus.answers import Answers
from msgbus.base_client import BaseClient
from msgbus.casts import CastRequest
from msgbus.drivers.base import Address, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.gathering import Gather, pings_of
from msgbus.interceptors import InterceptedRequest, Kind
from msgbus.message import Policy
from msgbus.pending import PendingCall
from msgbus.serializer import Serializer, check_serializer
from msgbus.target import Target


def get_rpc_client(transport: AsyncTransport, target: Target, **options: Any) -> AsyncRPCClient:
    """Make a client; the options are those of `AsyncRPCClient`.

    Raises:
        TypeError: a method of the serializer is ``async``; and as for `AsyncRPCClient`.
    """
    client = AsyncRPCClient(transport, target, **options)
    check_serializer(client.serializer)
    return client


class AsyncRPCClient(BaseClient):
    """Sends requests to a target, as `msgbus.RPCClient` does, with the same arguments and errors, for tasks.

    Only tasks of its transport's event loop may use it; in another one the verbs raise `msgbus.ConfigurationError`.

    A task that is cancelled while it waits, also by `asyncio.timeout`, cancels its call on the server. It does not wait
    for that.

    Its interceptors are ``async``, and run in the caller's task.
    """

    transport: AsyncTransport
    asynchronous = True

    def __init__(
        self,
        transport: AsyncTransport,
        target: Target,
        timeout: float | None = None,
        version_cap: str | None = None,
        serializer: Serializer | None = None,
        call_monitor_timeout: float | None = None,
        delivery: Policy | None = None,
        interceptors: Sequence[AsyncInterceptor] = (),
    ) -> None:
        check_transport(transport, "a client of msgbus.aio")
        super().__init__(
            transport, target, timeout, version_cap, serializer, call_monitor_timeout, delivery, interceptors
        )

    async def call(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> Any:
        """Run `method` on one server and return its value; see `msgbus.RPCClient.call`."""
        if self.interceptors:
            return await self._run_interceptors("call", "call", ctxt, method, kwargs)
        pending: PendingCall = self._new_pending(PendingCall, method, Loop.now())
        transport = self.transport
        with await transport.slot(pending.deadline, method, pending.address):
            request = self._request_of(ctxt, method, kwargs, pending)
            request.reply_to = await transport.inbox(pending.deadline, pending)
            message = self._message_of(request, pending)
            call = TaskCall(transport, pending, self._content_type, self._fallback)
            try:
                call.send(message)
                await call.wait()
            finally:
                call.close()
        return self._value(ctxt, pending)

    async def cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """Have `method` run on one server, and do not wait for it; see `msgbus.RPCClient.cast`.

        A cast whose task is cancelled may or may not have been delivered, and may still be until its deadline.
        """
        if self.interceptors:
            await self._run_interceptors("cast", "cast", ctxt, method, kwargs)
            return
        await self._cast(self._address, ctxt, method, kwargs)

    async def fanout_cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """Have `method` run on every server of the topic; see `msgbus.RPCClient.fanout_cast`."""
        if self.interceptors:
            await self._run_interceptors("fanout_cast", "cast", ctxt, method, kwargs)
            return
        await self._cast(Address("fanout", self._address.exchange, self._address.topic), ctxt, method, kwargs)

    async def _cast(self, address: Address, ctxt: Any, method: str, kwargs: dict[str, Any]) -> None:
        transport = self.transport
        # The deadline that a method inherits does not apply: nobody waits for a cast.
        deadline = Loop.now() + self._seconds
        with await transport.slot(deadline, method, address):
            is_fanout = address.kind == "fanout"
            message = self._cast_message(ctxt, is_fanout, method, kwargs, deadline)
            await transport.send_and_wait(
                address,
                message,
                deadline,
                what=f"{method!r} on",
                mandatory=not is_fanout,
                repeat=self._repeatable,
                fallback=None if is_fanout else self._fallback,
            )

    async def cast_many(self, ctxt: Any, requests: Iterable[CastRequest] | AsyncIterable[CastRequest], /) -> int:
        """Cast many requests, in order, without waiting for each; see `msgbus.RPCClient.cast_many`.

        The requests may also come from an asynchronous iterable.
        """
        casts = AsyncCasts(
            self.transport,
            self._address,
            repeat=self._repeatable,
            fallback=self._fallback,
            seconds=self._seconds,
            end=math.inf if self.deadline is None else Loop.now() + self.deadline,
        )
        fanout = self._address.kind == "fanout"
        intercept = partial(self._intercept_cast, ctxt, fanout) if self.interceptors else None
        return await casts.run(requests, partial(self._cast_message, ctxt, fanout), intercept)

    async def _intercept_cast(
        self, ctxt: Any, is_fanout: bool, method: str, kwargs: dict[str, Any], deadline: float
    ) -> Message | None:
        """Run the interceptors of one cast of many. Returns the message to send, or None if they have answered it."""
        request, write, messages = self._intercepted_cast_message(ctxt, is_fanout, method, kwargs, deadline)

        async def proceed(request: InterceptedRequest) -> None:
            write(request)

        await async_chain(self.interceptors, proceed)(request)
        return messages[0] if messages else None

    async def _run_interceptors(self, verb: str, kind: Kind, ctxt: Any, method: str, kwargs: dict[str, Any]) -> Any:
        """Run the interceptors of a request, and what they proceed with by this client without them."""

        async def send(request: InterceptedRequest) -> Any:
            client = self._without_interceptors(request)
            return await getattr(client, verb)(request.context, request.method, **request.args)

        request = self._intercepted(kind, ctxt, method, kwargs, self._end_of(kind), fanout=verb == "fanout_cast")
        return await async_chain(self.interceptors, send)(request)

    def multicall(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> AsyncStream:
        """Run a generator method on one server and iterate over its values as it yields them.

        ::

            async for item in client.multicall({}, "count", to=3):
                ...

        The request is sent when the iteration, or an ``async with``, begins. All else is as for
        `msgbus.RPCClient.multicall`: the remote generator waits while this side does not consume, and is closed when
        the stream is closed or dropped, or its task cancelled.
        """
        if self.interceptors:
            return InterceptedAsyncStream(self, self.transport, ctxt, method, kwargs)
        return AsyncStream(self, self.transport, ctxt, method, kwargs)

    def gather(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> AsyncGathering:
        """Run `method` on every server of the topic, and iterate over their answers as they come.

        ::

            async for answer in client.gather({}, "status"):
                print(answer.server, answer.value if answer.error is None else answer.error)

        The request is sent when the iteration, or an ``async with``, begins. All else is as for
        `msgbus.RPCClient.gather`. A task that is cancelled while it waits for an answer cancels what servers still run
        for it.
        """
        return AsyncGathering(self.transport, Gather(self.transport, self._askers(), ctxt, method), kwargs)

    async def ping(self, timeout: float = 1.0) -> Answers:
        """Ask every server of the topic (or the one that the target names) for a sign of life.

        See `msgbus.RPCClient.ping`.
        """
        gather = Gather(self.transport, [self._ping_asker(timeout)], {}, "ping", is_ping=True)
        async with AsyncGathering(self.transport, gather, {}, takes_place=False) as answers:
            return pings_of([answer async for answer in answers], answers)
