"""AsyncRPCClient: the verbs, for tasks. TaskCall: a call for whose outcome a task waits."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

from msgbus.aio.casts import AsyncCasts
from msgbus.aio.streams import AsyncStream
from msgbus.aio.task_call import TaskCall
from msgbus.aio.transport import AsyncTransport, check_transport
from msgbus.base_client import Answers, BaseClient, answers_of
from msgbus.base_transport import INSPECT_TIMEOUT
from msgbus.casts import CastRequest
from msgbus.drivers.base import Address, QueueInfo
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessagingTimeout, TransportUnavailable
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
    """

    transport: AsyncTransport

    def __init__(
        self,
        transport: AsyncTransport,
        target: Target,
        timeout: float | None = None,
        version_cap: str | None = None,
        serializer: Serializer | None = None,
        call_monitor_timeout: float | None = None,
        delivery: Policy | None = None,
    ) -> None:
        check_transport(transport, "a client of msgbus.aio")
        super().__init__(transport, target, timeout, version_cap, serializer, call_monitor_timeout, delivery)

    async def call(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> Any:
        """Run `method` on one server and return its value; see `msgbus.RPCClient.call`."""
        pending: PendingCall = self._new_pending(PendingCall, method, Loop.now())
        transport = self.transport
        with await transport.slot(pending.deadline):
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
        await self._cast(self._address, ctxt, method, kwargs)

    async def fanout_cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """Have `method` run on every server of the topic; see `msgbus.RPCClient.fanout_cast`."""
        await self._cast(Address("fanout", self._address.exchange, self._address.topic), ctxt, method, kwargs)

    async def _cast(self, address: Address, ctxt: Any, method: str, kwargs: dict[str, Any]) -> None:
        transport = self.transport
        # The deadline that a method inherits does not apply: nobody waits for a cast.
        deadline = Loop.now() + self._seconds
        with await transport.slot(deadline):
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
        return await casts.run(requests, partial(self._cast_message, ctxt, self._address.kind == "fanout"))

    def multicall(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> AsyncStream:
        """Run a generator method on one server and iterate over its values as it yields them.

        ::

            async for item in client.multicall({}, "count", to=3):
                ...

        The request is sent when the iteration, or an ``async with``, begins. All else is as for
        `msgbus.RPCClient.multicall`: the remote generator waits while this side does not consume, and is closed when
        the stream is closed or dropped, or its task cancelled.
        """
        return AsyncStream(self, self.transport, ctxt, method, kwargs)

    async def ping(self, timeout: float = 1.0) -> Answers:
        """Ask every server of the topic (or the one that the target names) for a sign of life.

        See `msgbus.RPCClient.ping`.
        """
        self.transport.check_loop()
        client = self._ping_client(timeout)
        pending = client._new_ping(Loop.now())
        call = TaskCall(self.transport, pending, self._content_type, None)
        request = client._request_of({}, "ping", {}, pending)
        request.reply_to = await self.transport.inbox(pending.deadline, pending)
        message = client._message_of(request, pending)
        counted: Future[QueueInfo] | None = None
        unreachable: TransportUnavailable | None = None
        try:
            call.send(message)
            # Each server of a topic consumes from it, so there will be as many answers.
            counted = self._count_consumers(self.transport.address(self.target(fanout=None)), pending)
            await call.wait(explain=False)
        except MessagingTimeout:  # Not all have answered.
            unreachable = client._not_taken(pending)
        except TransportUnavailable as exc:
            unreachable = exc
        finally:
            call.close()
        if counted is not None:
            await self.transport.wait_for(counted, Loop.now() + INSPECT_TIMEOUT)
        return answers_of(pending, counted, unreachable)
