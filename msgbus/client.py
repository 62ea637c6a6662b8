"""RPCClient: the four verbs."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any

from msgbus.casts import CastRequest, Casts, outcome_unknown
from msgbus.client_call import ClientCall
from msgbus.deadline import bounded
from msgbus.drivers.base import Address, Capability, Message, QueueInfo
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_request
from msgbus.exceptions import (
    InvalidTarget,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
    RPCVersionCapError,
    SerializationError,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.message import AT_LEAST_ONCE, CONTENT_TYPES, PING_NAMESPACE, POLICIES, Hints, Policy, Request, new_id
from msgbus.replies import Pending, PendingAnswers, PendingCall, PendingStream
from msgbus.sending import server_named_by
from msgbus.serializer import NoOpSerializer, Serializer, check_serializer
from msgbus.streams import Stream
from msgbus.target import Target, topic_hint
from msgbus.transport import INSPECT_TIMEOUT, Transport, check_transport
from msgbus.versions import version_is_compatible

LOG = get_logger(__name__)

STREAM_WINDOW = 2000
"""Items that a server may send ahead of what the client has taken, in a stream of which it has taken as many.

The server is given credit when half of them are taken. The other half has to last until that has reached the server,
and the next items this side: a few milliseconds, at 200,000 items a second."""
STREAM_BYTES = 4 << 20
"""Bytes of items that it may send ahead; one item more where that is larger. They bound what waits on either side."""
SEND_SHARE = 0.95
"""The share of a call's time in which its request has to be taken by the message system."""
_UNSET: Any = object()


class Answers(list[dict[str, Any]]):
    """What `RPCClient.ping` has gathered: a list with one dict for each server that has answered.

    Attributes:
        expected: how many servers the message system knows, or None if it does not say. Those that have not answered
            are frozen, have all their threads busy, or have just ended.
    """

    expected: int | None = None


def get_rpc_client(transport: Transport, target: Target, **options: Any) -> RPCClient:
    """Make a client; the options are those of `RPCClient`.

    Raises:
        TypeError: a method of the serializer is ``async``; and as for `RPCClient`.
    """
    client = RPCClient(transport, target, **options)
    check_serializer(client.serializer)
    return client


class RPCClient:
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
        self.transport = transport
        self.target = target
        self.timeout = timeout
        self.version_cap = version_cap
        self.serializer = serializer or NoOpSerializer()
        self.call_monitor_timeout = call_monitor_timeout
        self.delivery = delivery
        self.deadline: float | None = None
        self._derive()

    def _derive(self) -> None:
        """Check the settings, and derive from them once what every request needs."""
        option = self.transport.option
        if not isinstance(self.target, Target):
            raise TypeError(f"a client's target has to be a Target: Target(topic={self.target!r})")
        if not self.target.topic:
            raise InvalidTarget(f"a client's target needs a topic{topic_hint(self.target)}", self.target)
        for version in (self.target.version, self.version_cap):
            if version is not None:
                version_is_compatible(version, version)
        policy = self.delivery or option("rpc_delivery")
        if policy not in POLICIES:
            raise ValueError(f"delivery is {' or '.join(map(repr, POLICIES))}, not {policy!r}")
        self._policy: str = policy
        self._repeatable = policy == AT_LEAST_ONCE
        # If the message system may lose an answer, the server sends it until this side confirms it.
        keeps = {Capability.INBOX_STORAGE, Capability.DURABLE} <= self.transport.driver.capabilities
        self._confirms = self._repeatable and not keeps
        self._address = self.transport.address(self.target)
        self._fallback = server_named_by(self._address)
        self._seconds: float = self.timeout if self.timeout is not None else option("rpc_response_timeout")
        if not isinstance(self._seconds, int | float) or math.isnan(self._seconds):
            raise ValueError(f"a timeout is a number of seconds, not {self._seconds!r}")
        self._grace: float = option("rpc_reply_grace")
        self._content_type = CONTENT_TYPES[option("rpc_codec")]

    def __repr__(self) -> str:
        return f"<RPCClient {self.target} over {self.transport}>"

    def prepare(
        self,
        exchange: str | None = _UNSET,
        topic: str | None = _UNSET,
        namespace: str | None = _UNSET,
        version: str | None = _UNSET,
        server: str | None = _UNSET,
        fanout: bool | None = _UNSET,
        timeout: float | None = _UNSET,
        version_cap: str | None = _UNSET,
        call_monitor_timeout: float | None = _UNSET,
        delivery: Policy | None = _UNSET,
        deadline: float | None = _UNSET,
    ) -> RPCClient:
        """Return a client with other settings; None is a value like others, and restores the default.

        `deadline` is in seconds, and bounds a whole `multicall`, from its beginning to its last item, and a whole
        `cast_many`, until the last cast is confirmed.

        Raises:
            InvalidTarget, ValueError: as for the constructor.
        """
        wanted = {
            "exchange": exchange,
            "topic": topic,
            "namespace": namespace,
            "version": version,
            "server": server,
            "fanout": fanout,
        }
        changes = {name: value for name, value in wanted.items() if value is not _UNSET}
        prepared = copy.copy(self)
        if changes:
            prepared.target = self.target(**changes)
        if timeout is not _UNSET:
            prepared.timeout = timeout
        if version_cap is not _UNSET:
            prepared.version_cap = version_cap
        if call_monitor_timeout is not _UNSET:
            prepared.call_monitor_timeout = call_monitor_timeout
        if delivery is not _UNSET:
            prepared.delivery = delivery
        if deadline is not _UNSET:
            prepared.deadline = deadline
        prepared._derive()
        return prepared

    def can_send_version(self, version: str | None = _UNSET) -> bool:
        """Whether the version cap lets a request of `version` (default: the target's) go."""
        if self.version_cap is None:
            return True
        asked = self.target.version if version is _UNSET else version
        return asked is not None and version_is_compatible(self.version_cap, asked)

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
            message = self._message(ctxt, method, kwargs, pending, Loop.now())  # There may have been a wait.
            call = ClientCall(self.transport, pending, self._content_type, self._fallback)
            try:
                call.send(message)
                call.wait()
            finally:
                call.close()
        reply = pending.answer
        assert reply is not None
        if reply.failure is not None and (error := pending.failure_of(reply)) is not None:
            raise error
        if type(self.serializer) is NoOpSerializer:
            return reply.result
        return self.serializer.deserialize_entity(ctxt, reply.result)

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
        transport, now = self.transport, Loop.now()
        deadline = now + self._seconds  # The deadline that a handler inherits does not apply: nobody waits for a cast.
        with transport.slot(deadline):
            is_fanout = address.kind == "fanout"
            message = self._cast_message(ctxt, is_fanout, method, kwargs, deadline)
            try:
                transport.send_and_wait(
                    address,
                    message,
                    deadline,
                    what=f"{method!r} on",
                    mandatory=not is_fanout,
                    repeat=self._repeatable,
                    fallback=None if is_fanout else self._fallback,
                )
            except TransportUnavailable as exc:
                if not exc.maybe_delivered or self._repeatable:
                    raise
                raise outcome_unknown(method, address, exc) from exc

    def _cast_message(
        self, ctxt: Any, is_fanout: bool, method: str, kwargs: dict[str, Any], deadline: float
    ) -> Message:
        # The deadline bounds the sending. Once the message system has it, it waits for a server as long as it takes,
        # unless the caller gave a time.
        left = deadline - Loop.now()
        ttl = None if self.timeout is None else left
        unique_id = new_id()
        body = self._body(ctxt, method, kwargs, Hints(ttl, time.time(), self._policy), unique_id)
        return Message(body, self._content_type, unique_id, ttl, not is_fanout, left)

    def multicall(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> Stream:
        """Run a generator method on one server and iterate over its values as it yields them.

        The request is sent at once. `timeout` bounds the wait for each item, ``prepare(deadline=...)`` the whole. The
        server's generator waits while this side does not consume, and is closed when the iterator is closed or
        dropped. A method that returns plainly yields one item.

        It raises what `call` raises. An exception of the remote generator is raised from the iteration, after the
        values before it.
        """
        now = Loop.now()
        end = bounded(float("inf") if self.deadline is None else now + self.deadline)
        pending = self._new_pending(
            PendingStream,
            method,
            now,
            window=STREAM_WINDOW,
            window_bytes=STREAM_BYTES,
            idle_timeout=self._seconds,
            end=end,
        )
        call = ClientCall(self.transport, pending, self._content_type, self._fallback)
        with ExitStack() as stack:
            stack.enter_context(self.transport.slot(pending.deadline))
            now = Loop.now()  # There may have been a wait.
            left = None if end == float("inf") else end - now
            message = self._message(ctxt, method, kwargs, pending, now, window=STREAM_WINDOW, end=left)
            try:
                call.send(message)
                call.stop_driving()  # Handlers of signals that were put off meanwhile may raise.
            except BaseException:
                call.close()
                raise
            return Stream(call, stack.pop_all(), self.serializer, ctxt)

    def ping(self, timeout: float = 1.0) -> Answers:
        """Ask every server of the topic (or the one that the target names) for a sign of life.

        A server that is frozen, or all of whose threads are busy, does not answer, and is still counted: compare the
        number of answers with `Answers.expected`.

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
        target = self.target(namespace=PING_NAMESPACE, version=None, fanout=not self.target.server or None)
        client = self.prepare(timeout=timeout, version_cap=None)
        client.serializer = NoOpSerializer()  # There is no context, and the answers are plain.
        client.target, client._address = target, self.transport.address(target)
        enough = 1 if target.server else math.inf
        pending: PendingAnswers = client._new_pending(PendingAnswers, "ping", now, enough=enough)
        call = ClientCall(self.transport, pending, self._content_type, None)
        message = client._message({}, "ping", {}, pending, now)
        counted: Future[QueueInfo] | None = None
        unreachable: TransportUnavailable | None = None
        try:
            call.send(message)
            # Each server of a topic consumes from it, so there will be as many answers.
            counted = self._count_consumers(self.transport.address(self.target(fanout=None)), pending)
            call.wait(explain=False)
        except MessagingTimeout:
            pass  # Not all have answered.
        except TransportUnavailable as exc:
            unreachable = exc
        finally:
            call.close()
        found = Answers({**answer, "seconds": round(at - now, 6)} for answer, at in pending.answers)
        found.expected = _consumers_of(counted, INSPECT_TIMEOUT, len(found))
        # If the message system knows of servers, one that cannot be reached is frozen: it counts as one without an
        # answer.
        if unreachable is not None and not found and not found.expected:
            raise unreachable
        return found

    def _count_consumers(self, address: Address, pending: PendingAnswers) -> Future[QueueInfo] | None:
        """Ask how many consumers an address has: there will be as many answers. None if the driver cannot say."""
        driver = self.transport.driver
        if Capability.INSPECT not in driver.capabilities:
            return None

        def on_counted(counted: Future[QueueInfo]) -> None:
            consumers = _consumers_of(counted, 0.0, 1)
            if consumers is not None:
                pending.enough = consumers
                pending.wake()

        counted = driver.inspect(address)
        counted.add_done_callback(on_counted)
        return counted

    def _body(
        self,
        ctxt: Any,
        method: str,
        kwargs: dict[str, Any],
        hints: Hints,
        unique_id: str,
        pending: Pending | None = None,
    ) -> bytes:
        """Write a request; with `pending`, one that is to be answered."""
        if not method or not isinstance(method, str):
            raise _no_method(ctxt, method, kwargs)
        if self.version_cap is not None and not self.can_send_version():
            raise RPCVersionCapError(self.target.version, self.version_cap)
        serializer, target = self.serializer, self.target
        if type(serializer) is NoOpSerializer:
            # A dict is what that would make a copy of.
            context = ctxt if type(ctxt) is dict else serializer.serialize_context(ctxt)
        else:
            context = serializer.serialize_context(ctxt)
            kwargs = {name: serializer.serialize_entity(ctxt, value) for name, value in kwargs.items()}
        request = Request(method, kwargs, unique_id, target.namespace, target.version, context=context, hints=hints)
        if pending is not None:
            request.call_id = pending.id
            request.reply_to = self.transport.inbox(pending.deadline)
            request.monitor = self.call_monitor_timeout
        return encode_request(request, self._content_type, lossy=self.transport.lossy)

    def _new_pending(self, cls: Any, method: str, now: float, **more: Any) -> Any:
        if cls is not PendingAnswers and self._address.kind == "fanout":
            raise InvalidTarget("a call has no answer from all servers at once; cast, or name a server", self.target)
        return cls(
            new_id(),
            method,
            self._address,
            began=now,
            deadline=bounded(now + self._seconds),
            grace=self._grace,
            repeatable=self._repeatable,
            monitor=self.call_monitor_timeout,
            allowed_modules=self.transport.allowed_remote_exmods,
            **more,
        )

    def _message(
        self,
        ctxt: Any,
        method: str,
        kwargs: dict[str, Any],
        pending: Pending,
        now: float,
        window: int | None = None,
        end: float | None = None,
    ) -> Message:
        ttl = pending.deadline - now
        confirms = self._confirms and window is None
        hints = Hints(ttl, time.time(), self._policy, window, end, confirms)
        if window is not None:
            hints.window_bytes = STREAM_BYTES
        body = self._body(ctxt, method, kwargs, hints, pending.id, pending)
        # The driver knows best why a request could not be sent. So its time for that ends a moment before the caller's.
        return Message(body, self._content_type, pending.id, ttl, self._repeatable, ttl * SEND_SHARE)


def _no_method(ctxt: Any, method: Any, kwargs: dict[str, Any]) -> Exception:
    """The error for a verb that was called without a method's name, or without the context before it."""
    names = "".join(f", {name}=..." for name in kwargs)
    if method == "":
        if isinstance(ctxt, str):
            return TypeError(f"the caller's context is missing, which comes before the method: ({{}}, {ctxt!r}{names})")
        return TypeError(f"the method's name is missing: it comes after the context, (ctxt, 'METHOD'{names})")
    hint = f"; the context comes before it: ({{}}, {ctxt!r}{names})" if isinstance(ctxt, str) else ""
    return SerializationError(f"a method's name is a string, not {type(method).__name__}{hint}")


def _consumers_of(counted: Future[QueueInfo] | None, timeout: float, answered: int) -> int | None:
    """The number of consumers, or of answers if that is higher; None if it is unknown."""
    if counted is None:
        return None
    try:
        return max(answered, counted.result(timeout).consumers)
    except MessageUndeliverable:
        return answered
    except (MessagingException, TimeoutError):
        return None
