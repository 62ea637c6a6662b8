"""RPCClient: the four verbs, for threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from msgbus.answers import Answers
from msgbus.base_client import BaseClient
from msgbus.casts import CastRequest, Casts
from msgbus.client_call import ThreadCall
from msgbus.drivers.base import Address, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.gathering import Gather, Gathering, pings_of
from msgbus.interceptors import InterceptedRequest, Interceptor, Kind, chain
from msgbus.message import Policy
from msgbus.pending import PendingCall
from msgbus.serializer import Serializer, check_serializer
from msgbus.streams import InterceptedStream, Stream
from msgbus.target import Target
from msgbus.transport import Transport, check_transport


def get_rpc_client(transport: Transport, target: Target, **options: Any) -> RPCClient:
    """Make a client; the options are those of `RPCClient`.

    Raises:
        TypeError: the serializer is a class, or has an ``async`` method; and as for `RPCClient`.
    """
    client = RPCClient(transport, target, **options)
    check_serializer(client.serializer)
    return client


class RPCClient(BaseClient):
    """Sends requests to a target. Thread-safe; cheap to make and to `prepare`.

    Args:
        transport: the connection to the message system.
        target: the receiver of the requests; needs a topic.
        timeout: seconds that a verb may take (for `multicall`: between two items); None means the option
            ``rpc_response_timeout``.
        version_cap: the highest version that the servers are known to have; requests above it are refused.
        serializer: turns arguments, results and the context into plain data and back.
        call_monitor_timeout: seconds of silence of a stock oslo.messaging server after which a call is given up; None
            means no limit. (Servers of msgbus send keepalives of their own accord.)
        delivery: ``"at_most_once"`` or ``"at_least_once"``; None means the option ``rpc_delivery``.
        interceptors: functions ``(request, proceed)``, each around the next one, for all verbs but `gather` and `ping`;
            the first is the outermost. `prepare` keeps them. They run on the caller's thread. See
            ``docs/howto/interceptors.md``.

    Raises:
        InvalidTarget: there is no topic.
        ValueError: an invalid version, timeout or delivery policy.
        TypeError: the transport or the target has another type, or an interceptor cannot be called, or is ``async``.
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
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        check_transport(transport, "client")
        super().__init__(
            transport, target, timeout, version_cap, serializer, call_monitor_timeout, delivery, interceptors
        )

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
        if self.interceptors:
            return self._run_interceptors("call", "call", ctxt, method, kwargs)
        pending: PendingCall = self._new_pending(PendingCall, method, Loop.now())
        with self.transport.slot(pending.deadline, method, pending.address):
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
        """Run `method` on one server (with ``fanout=True`` in the target: on all), and do not wait for it.

        Returns when the message system has taken responsibility for the request. Then the request waits for a server
        for as long as it takes. If a `timeout` was given, it is dropped if no server has begun it by then.

        It raises what `call` raises, except for the errors that concern the answer.
        """
        if self.interceptors:
            self._run_interceptors("cast", "cast", ctxt, method, kwargs)
            return
        self._cast(self._address, ctxt, method, kwargs)

    def fanout_cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """Run `method` on every server of the topic. It is not an error if there is no server.

        It raises what `cast` raises.
        """
        if self.interceptors:
            self._run_interceptors("fanout_cast", "cast", ctxt, method, kwargs)
            return
        self._cast(Address("fanout", self._address.exchange, self._address.topic), ctxt, method, kwargs)

    def cast_many(self, ctxt: Any, requests: Iterable[CastRequest], /) -> int:
        """Cast many requests, in order, without waiting for one to be confirmed before the next is sent.

        ::

            client.cast_many(ctxt, (("resize", {"image": name}) for name in names))

        It returns when the message system has taken responsibility for all of them. Each request is a separate cast: it
        goes where `cast` sends it (with ``fanout=True`` in the target: to all servers). `timeout` bounds each cast, and
        ``prepare(deadline=...)`` the whole. The iterable is read on this thread while requests are sent, so it may be a
        generator of any length. At most half of ``rpc_send_window`` requests are on their way at a time.

        After an error no more requests are sent, and the outcomes of those on the way are waited for.

        Args:
            ctxt: the caller's context, for all of them.
            requests: for each cast a pair of the method's name and a dict of its arguments.

        Returns:
            the number of requests.

        Raises:
            CastsFailed: a request was not confirmed, or cannot be sent. It says which was the first and why, how many
                were confirmed, and which may have been delivered.
            Exception: the iterable raised it. A note of the exception says how many requests were confirmed. (After a
                `KeyboardInterrupt` and the like, nothing is waited for.)
        """
        casts = Casts(
            self.transport,
            self._address,
            repeat=self._repeatable,
            fallback=self._fallback,
            seconds=self._seconds,
            end=math.inf if self.deadline is None else Loop.now() + self.deadline,
        )
        write = self._intercept_cast if self.interceptors else self._cast_message
        return casts.run(requests, partial(write, ctxt, self._address.kind == "fanout"))

    def _intercept_cast(
        self, ctxt: Any, is_fanout: bool, method: str, kwargs: dict[str, Any], deadline: float
    ) -> Message | None:
        """Run the interceptors of one cast of many. Returns the message to send, or None if they have answered it."""
        request, write, messages = self._intercepted_cast_message(ctxt, is_fanout, method, kwargs, deadline)
        chain(self.interceptors, write)(request)
        return messages[0] if messages else None

    def _intercept_multicall(self, ctxt: Any, method: str, kwargs: dict[str, Any]) -> Stream:
        """Run the interceptors of a multicall."""
        begun: list[Stream] = []
        items = None
        try:
            items = self._run_interceptors("multicall", "multicall", ctxt, method, kwargs, begun.append)
        finally:
            for stream in begun:
                if items is None or (isinstance(items, Stream) and stream is not items):
                    stream.close()
        return items if isinstance(items, Stream) else InterceptedStream(items, begun, self, method)

    def _run_interceptors(
        self,
        verb: str,
        kind: Kind,
        ctxt: Any,
        method: str,
        kwargs: dict[str, Any],
        note: Callable[[Any], None] | None = None,
    ) -> Any:
        """Run the interceptors of a request, and what they proceed with by this client without them.

        `note`, if given, is called with each result of that.
        """

        def send(request: InterceptedRequest) -> Any:
            client = self._without_interceptors(request)
            result = getattr(client, verb)(request.context, request.method, **request.args)
            if note is not None:
                note(result)
            return result

        request = self._intercepted(kind, ctxt, method, kwargs, self._end_of(kind), fanout=verb == "fanout_cast")
        return chain(self.interceptors, send)(request)

    def _cast(self, address: Address, ctxt: Any, method: str, kwargs: dict[str, Any]) -> None:
        transport = self.transport
        # The deadline that a handler inherits does not apply: nobody waits for a cast.
        deadline = Loop.now() + self._seconds
        with transport.slot(deadline, method, address):
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
        server's generator waits while the client does not read, and is closed when the iterator is closed or dropped. A
        method that is no generator yields one item.

        It raises what `call` raises. An exception of the remote generator is raised from the iteration, after the
        values before it.
        """
        if self.interceptors:
            return self._intercept_multicall(ctxt, method, kwargs)
        pending = self._new_stream(method)
        call = ThreadCall(self.transport, pending, self._content_type, self._fallback)
        with ExitStack() as stack:
            stack.enter_context(self.transport.slot(pending.deadline, method, pending.address))
            request = self._stream_request(ctxt, method, kwargs, pending)
            request.reply_to = self.transport.inbox(pending.deadline, pending)
            return self._begin_stream(call, self._message_of(request, pending), stack, ctxt)

    def _begin_stream(self, call: ThreadCall, message: Message, slot: ExitStack, ctxt: Any) -> Stream:
        """Send the request of a multicall, whose place in the send window is `slot`."""
        loop, stream = self.transport.loop, None
        # What a handler of a signal raises in the midst would leave a stream that nobody closes, and that stays alive.
        holds = loop.hold_signals()
        try:
            try:
                call.send(message)
                stream = Stream(call, slot.pop_all(), self.serializer, ctxt)
            finally:
                call.stop_driving()
                if holds:
                    loop.release_signals()
        except BaseException:
            if stream is not None:
                stream.close()
            call.close()
            raise
        return stream

    def gather(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> Gathering:
        """Run `method` on every server of the topic, and iterate over the answers as they arrive.

        ::

            for answer in client.gather({}, "status"):
                print(answer.server, answer.value if answer.error is None else answer.error)

        The request is sent at once, to the servers that exist at that moment: those of the topic; the one that the
        target names; or those of many topics, after ``prepare(topics=[...])``. An exception of a method is in
        `Answer.error`; the iteration does not raise it. The answer of a generator method is its last value.

        The iteration ends when all servers known to the message system have answered, or at the deadline: `timeout`, or
        the inherited one. If a server dies meanwhile, it is waited for until then; if it had reported that it runs the
        method, until it has been silent for 15 s. A server that joins later is not asked. If no server is known, the
        iteration ends at once. Afterwards `Gathering.expected` and `Gathering.answered` say whether an answer is
        missing.

        Each server runs the method at most once, whatever the option ``rpc_delivery`` says, and the request is never
        sent again. A gather takes one place of ``rpc_send_window`` until it ends, is closed, or is dropped; methods
        that still run for it then are cancelled. Its answers are kept until they are read.

        Stock oslo.messaging servers answer too, without their names. Interceptors of this client do not see a gather,
        and those of the servers see a call without metadata.

        Args:
            ctxt: the caller's context, as for `call`.
            method: its name.
            kwargs: its arguments.

        Raises:
            ValueError: the client was made with ``delivery="at_least_once"``; nothing was sent.
            TransportUnavailable: the message system could not be reached by the deadline.
            MessagingTimeout: nothing was sent: the deadline had passed before, or there was no place in the send
                window.
            SerializationError, RPCVersionCapError, InvalidTarget: the request is not allowed as it is.
            TypeError: the context or the method's name is missing.
        """
        return Gathering(self.transport, Gather(self.transport, self._askers(), ctxt, method), kwargs)

    def ping(self, timeout: float = 1.0) -> Answers:
        """Ask every server of the topic (or the one that the target names) for a sign of life.

        A server that is frozen or too busy (all of its threads or tasks are busy) does not answer, but is counted:
        compare the number of answers with `Answers.expected`.

        Args:
            timeout: seconds to wait for answers. Returns earlier if all servers known to the message system have
                answered.

        Returns:
            for each server that answers a dict with server, topic, host, pid, version (of msgbus) and seconds (until
            its answer).

        Raises:
            MessageUndeliverable: the target names a server, and nobody listens there.
            TransportUnavailable: the message system could not be reached, or accepted no request in that time.
            ValueError: `timeout` is not a number.
        """
        gather = Gather(self.transport, [self._ping_asker(timeout)], {}, "ping", is_ping=True)
        with Gathering(self.transport, gather, {}, takes_place=False) as answers:
            return pings_of(list(answers), answers)
