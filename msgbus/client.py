"""RPCClient: the four verbs, for threads."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any

from msgbus.base_client import Answers, BaseClient, answers_of
from msgbus.base_transport import INSPECT_TIMEOUT
from msgbus.casts import CastRequest, Casts
from msgbus.client_call import ThreadCall
from msgbus.drivers.base import Address, QueueInfo
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessagingTimeout, TransportUnavailable
from msgbus.message import Policy
from msgbus.pending import PendingCall
from msgbus.serializer import Serializer, check_serializer
from msgbus.streams import Stream
from msgbus.target import Target
from msgbus.transport import Transport, check_transport


def get_rpc_client(transport: Transport, target: Target, **options: Any) -> RPCClient:
    """Make a client; the options are those of `RPCClient`.

    Raises:
        TypeError: a method of the serializer is ``async``; and as for `RPCClient`.
    """
    client = RPCClient(transport, target, **options)
    check_serializer(client.serializer)
    return client


class RPCClient(BaseClient):
    """Sends requests to a target. Thread-safe; cheap to make and to `prepare`.

    Args:
        transport: where to.
        target: whom to; needs a topic.
        timeout: seconds that a verb may take (for `multicall`: between two items); None means the option
            ``rpc_response_timeout``.
        version_cap: the highest version that the servers are known to have; requests above it are refused.
        serializer: turns arguments, results and the context into plain data and back.
        call_monitor_timeout: seconds of silence of a stock oslo.messaging server after which a call is given up; None
            means no limit. (Servers of msgbus send keepalives of their own accord.)
        delivery: ``"at_most_once"`` or ``"at_least_once"``; None means the option ``rpc_delivery``.

    Raises:
        InvalidTarget: there is no topic.
        ValueError: an invalid version, timeout or delivery policy.
        TypeError: the transport or the target has another type.
    """

    transport: Transport

    def __init__(
        self,
        transport: Transport,
        target: Target,
        timeout: float | None = None,
        version_cap: str | None = None,
        serializer: Serializer | None = None,
        call_monitor_timeout: float | None = None,
        delivery: Policy | None = None,
    ) -> None:
        check_transport(transport, "client")
        super().__init__(transport, target, timeout, version_cap, serializer, call_monitor_timeout, delivery)

    def call(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> Any:
        """Run `method` on one server and return its value (of a generator: the last).

        Args:
            ctxt: the caller's context: a dict, or an object that the serializer turns into one.
            method: its name.
            kwargs: its arguments.

        Raises:
            MessageUndeliverable: nobody listens at the target.
            TransportUnavailable, TransportBlocked, MessageTooLarge: it could not be sent.
            MessagingTimeout: no answer by the deadline; `ServerLost`: the server that ran it fell silent.
            OutcomeUnknown: under at_most_once, it may or may not have run.
            RemoteError: the method raised; the exception itself is raised instead if it may be rebuilt here.
            SerializationError: an argument or the result cannot be sent, or the reply cannot be read.
            RPCVersionCapError, InvalidTarget: the request is not allowed as it is.
            TypeError: the context or the method's name is missing.
        """
        pending: PendingCall = self._new_pending(PendingCall, method, Loop.now())
        with self.transport.slot(pending.deadline):
            request = self._request_of(ctxt, method, kwargs, pending)
            request.reply_to = self.transport.inbox(pending.deadline, pending)
            message = self._message_of(request, pending)
            call = ThreadCall(self.transport, pending, self._content_type, self._fallback)
            try:
                call.send(message)
                call.wait()
            finally:
                call.close()
        return self._value(ctxt, pending)

    def cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """Have `method` run on one server (with ``fanout=True`` in the target: on all), and do not wait for it.

        Returns once the message system has taken responsibility for the request. Then the request waits for a server
        for as long as it takes; only if a `timeout` was given is it dropped when no server has begun it by then.

        It raises what `call` raises, except for the errors that concern the answer.
        """
        self._cast(self._address, ctxt, method, kwargs)

    def fanout_cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """Have `method` run on every server of the topic. It is not an error if there is none.

        It raises what `cast` raises.
        """
        self._cast(Address("fanout", self._address.exchange, self._address.topic), ctxt, method, kwargs)

    def cast_many(self, ctxt: Any, requests: Iterable[CastRequest], /) -> int:
        """Cast many requests, in order, without waiting for one to be confirmed before the next is sent.

        ::

            client.cast_many(ctxt, (("resize", {"image": name}) for name in names))

        It returns once the message system has taken responsibility for all of them. Each request is a cast by itself:
        they go where `cast` sends them (with ``fanout=True`` in the target: each to all servers), `timeout` bounds each
        as that of a `cast`, and ``prepare(deadline=...)`` bounds the whole. The iterable is read as the requests are
        sent, on this thread, so it may be a generator of any length: at most half of ``rpc_send_window`` requests are
        on their way at a time.

        After an error no more requests are sent, and what becomes of those on the way is waited for.

        Args:
            ctxt: the caller's context, for all of them.
            requests: for each cast a pair of the method's name and a dict of its arguments.

        Returns:
            how many there were.

        Raises:
            CastsFailed: a request was not taken, or cannot be sent. It says which one was the first, why, how many were
                confirmed and which ones may have been delivered.
            Exception: the iterable raised it. A note of the exception says how many requests were confirmed. (After
                what is no `Exception`, such as `KeyboardInterrupt`, nothing is waited for.)
        """
        casts = Casts(
            self.transport,
            self._address,
            repeat=self._repeatable,
            fallback=self._fallback,
            seconds=self._seconds,
            end=math.inf if self.deadline is None else Loop.now() + self.deadline,
        )
        return casts.run(requests, partial(self._cast_message, ctxt, self._address.kind == "fanout"))

    def _cast(self, address: Address, ctxt: Any, method: str, kwargs: dict[str, Any]) -> None:
        transport = self.transport
        # The deadline that a handler inherits does not apply: nobody waits for a cast.
        deadline = Loop.now() + self._seconds
        with transport.slot(deadline):
            is_fanout = address.kind == "fanout"
            message = self._cast_message(ctxt, is_fanout, method, kwargs, deadline)
            transport.send_and_wait(
                address,
                message,
                deadline,
                what=f"{method!r} on",
                mandatory=not is_fanout,
                repeat=self._repeatable,
                fallback=None if is_fanout else self._fallback,
            )

    def multicall(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> Stream:
        """Run a generator method on one server and iterate over its values as it yields them.

        The request is sent at once. `timeout` bounds the wait for each item, ``prepare(deadline=...)`` the whole. The
        server's generator waits while this side does not consume, and is closed when the iterator is closed or
        dropped. A method that returns plainly yields one item.

        It raises what `call` raises. An exception of the remote generator is raised from the iteration, after the
        values before it.
        """
        pending = self._new_stream(method)
        call = ThreadCall(self.transport, pending, self._content_type, self._fallback)
        with ExitStack() as stack:
            stack.enter_context(self.transport.slot(pending.deadline))
            request = self._stream_request(ctxt, method, kwargs, pending)
            request.reply_to = self.transport.inbox(pending.deadline, pending)
            message = self._message_of(request, pending)
            try:
                call.send(message)
                call.stop_driving()  # It may raise what a handler of a signal raises.
            except BaseException:
                call.close()
                raise
            return Stream(call, stack.pop_all(), self.serializer, ctxt)

    def ping(self, timeout: float = 1.0) -> Answers:
        """Ask every server of the topic (or the one that the target names) for a sign of life.

        A server that is frozen or too busy (all of its threads or tasks are taken) does not answer, and is still
        counted: compare the number of answers with `Answers.expected`.

        Args:
            timeout: seconds to gather answers. Returns earlier if as many answer as the message system knows.

        Returns:
            for each server that answers a dict with server, topic, host, pid, version (of msgbus) and seconds (until
            its answer).

        Raises:
            MessageUndeliverable: the target names a server, and nobody listens there.
            TransportUnavailable: the message system could not be reached, or took no request in that time.
        """
        now = Loop.now()
        client = self._ping_client(timeout)
        pending = client._new_ping(now)
        call = ThreadCall(self.transport, pending, self._content_type, None)
        request = client._request_of({}, "ping", {}, pending)
        request.reply_to = self.transport.inbox(pending.deadline, pending)
        message = client._message_of(request, pending)
        counted: Future[QueueInfo] | None = None
        unreachable: TransportUnavailable | None = None
        try:
            call.send(message)
            # Each server of a topic consumes from it, so there will be as many answers.
            counted = self._count_consumers(self.transport.address(self.target(fanout=None)), pending)
            call.wait(explain=False)
        except MessagingTimeout:  # Not all have answered.
            unreachable = client._not_taken(pending)
        except TransportUnavailable as exc:
            unreachable = exc
        finally:
            call.close()
        if counted is not None:
            self.transport.loop.wait_for(counted, Loop.now() + INSPECT_TIMEOUT)
        return answers_of(pending, counted, unreachable)
