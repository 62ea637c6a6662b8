"""BaseClient: what the clients for threads and for asyncio have in common: settings, and the messages they send."""

from __future__ import annotations

import copy
import math
import time
from concurrent.futures import Future
from typing import Any, TypeVar

from msgbus.base_transport import BaseTransport
from msgbus.deadline import bounded
from msgbus.drivers.base import Address, Capability, Message, QueueInfo
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_request
from msgbus.exceptions import (
    InvalidTarget,
    MessageUndeliverable,
    MessagingException,
    RPCVersionCapError,
    SerializationError,
    TransportUnavailable,
)
from msgbus.message import AT_LEAST_ONCE, CONTENT_TYPES, PING_NAMESPACE, POLICIES, Hints, Policy, Request, new_id
from msgbus.pending import Pending, PendingAnswers, PendingCall
from msgbus.pending_stream import PendingStream
from msgbus.sending import server_named_by
from msgbus.serializer import NoOpSerializer, Serializer
from msgbus.target import Target, topic_hint
from msgbus.versions import version_is_compatible

STREAM_WINDOW = 2000
"""Items that a server may send ahead of what the client has taken, in a stream of which it has taken as many.

The server is given credit when half of them are taken. The other half has to last until that has reached the server,
and the next items this side: a few milliseconds, at 200,000 items a second."""
STREAM_BYTES = 4 << 20
"""Bytes of items that it may send ahead; one item more where that is larger. They bound what waits on either side."""
SEND_SHARE = 0.95
"""The share of a call's time in which its request has to be taken by the message system."""
_UNSET: Any = object()

Client = TypeVar("Client", bound="BaseClient")


class Answers(list[dict[str, Any]]):
    """What `RPCClient.ping` has gathered: a list with one dict for each server that has answered.

    Attributes:
        expected: how many servers the message system knows, or None if it does not say. Those that have not answered
            are frozen, are too busy to answer, or have just ended.
    """

    expected: int | None = None


class BaseClient:
    """See `msgbus.RPCClient`, whose arguments these are."""

    def __init__(
        self,
        transport: BaseTransport,
        target: Target,
        timeout: float | None = None,
        version_cap: str | None = None,
        serializer: Serializer | None = None,
        call_monitor_timeout: float | None = None,
        delivery: Policy | None = None,
    ) -> None:
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
        return f"<{type(self).__name__} {self.target} over {self.transport}>"

    def prepare(
        self: Client,
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
    ) -> Client:
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

    def _cast_message(
        self, ctxt: Any, is_fanout: bool, method: str, kwargs: dict[str, Any], deadline: float
    ) -> Message:
        # The deadline bounds the sending. Once the message system has it, it waits for a server as long as it takes,
        # unless the caller gave a time.
        left = deadline - Loop.now()
        ttl = None if self.timeout is None else left
        unique_id = new_id()
        request = self._request(ctxt, method, kwargs, Hints(ttl, time.time(), self._policy), unique_id)
        body = encode_request(request, self._content_type, lossy=self.transport.lossy)
        return Message(body, self._content_type, unique_id, ttl, not is_fanout, left)

    def _new_stream(self, method: str) -> PendingStream:
        end = math.inf if self.deadline is None else Loop.now() + self.deadline
        stream: PendingStream = self._new_pending(
            PendingStream,
            method,
            Loop.now(),
            window=STREAM_WINDOW,
            window_bytes=STREAM_BYTES,
            idle_timeout=self._seconds,
            end=bounded(end),
        )
        return stream

    def _stream_request(self, ctxt: Any, method: str, kwargs: dict[str, Any], pending: PendingStream) -> Request:
        left = None if pending.end == math.inf else pending.end - Loop.now()
        return self._request_of(ctxt, method, kwargs, pending, window=STREAM_WINDOW, end=left)

    def _ping_client(self: Client, timeout: float) -> Client:
        """A client for a ping: all servers of the topic, or the one that the target names, are asked."""
        target = self.target(namespace=PING_NAMESPACE, version=None, fanout=not self.target.server or None)
        client = self.prepare(timeout=timeout, version_cap=None)
        client.serializer = NoOpSerializer()  # There is no context, and the answers are plain.
        client.target, client._address = target, self.transport.address(target)
        client._fallback = None
        return client

    def _new_ping(self, now: float) -> PendingAnswers:
        answers: PendingAnswers = self._new_pending(
            PendingAnswers, "ping", now, enough=1 if self.target.server else math.inf
        )
        return answers

    def _not_taken(self, pending: PendingAnswers) -> TransportUnavailable | None:
        """Why a ping has no answers at its end, if its request was not taken. The driver may say so a moment later."""
        if pending.sent or pending.answers:
            return None
        state = f"not taken in {self._seconds:g} s: {self.transport.driver.state}"
        return self.transport.about(pending.describe, TransportUnavailable(state, maybe_delivered=True))

    def _count_consumers(self, address: Address, pending: PendingAnswers) -> Future[QueueInfo] | None:
        """Ask how many consumers an address has: there will be as many answers. None if the driver cannot say."""
        driver = self.transport.driver
        if Capability.INSPECT not in driver.capabilities:
            return None

        def on_counted(counted: Future[QueueInfo]) -> None:
            consumers = consumers_of(counted, 1)
            if consumers is not None:
                pending.enough = consumers
                pending.wake()

        counted = driver.inspect(address)
        counted.add_done_callback(on_counted)
        return counted

    def _request(
        self,
        ctxt: Any,
        method: str,
        kwargs: dict[str, Any],
        hints: Hints,
        unique_id: str,
    ) -> Request:
        """Make a request.

        Raises:
            TypeError, SerializationError, RPCVersionCapError: it is not allowed as it is.
        """
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
        return Request(method, kwargs, unique_id, target.namespace, target.version, context=context, hints=hints)

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

    def _request_of(
        self,
        ctxt: Any,
        method: str,
        kwargs: dict[str, Any],
        pending: Pending,
        window: int | None = None,
        end: float | None = None,
    ) -> Request:
        """The request of a call. What is missing is where the answer goes: the inbox may still have to be opened."""
        ttl = pending.deadline - Loop.now()
        confirms = self._confirms and window is None
        hints = Hints(ttl, time.time(), self._policy, window, end, confirms)
        if window is not None:
            hints.window_bytes = STREAM_BYTES
        request = self._request(ctxt, method, kwargs, hints, pending.id)
        request.call_id = pending.id
        request.monitor = self.call_monitor_timeout
        return request

    def _message_of(self, request: Request, pending: Pending) -> Message:
        """The message of a request that is complete."""
        body = encode_request(request, self._content_type, lossy=self.transport.lossy)
        ttl = pending.deadline - Loop.now()
        # The driver knows best why a request could not be sent. So its time for that ends a moment before the caller's.
        return Message(body, self._content_type, pending.id, ttl, self._repeatable, ttl * SEND_SHARE)

    def _value(self, ctxt: Any, pending: PendingCall) -> Any:
        """The value of a call that has been answered.

        Raises:
            Exception: the method has raised it.
        """
        reply = pending.answer
        assert reply is not None
        if reply.failure is not None and (error := pending.failure_of(reply)) is not None:
            try:
                raise error
            finally:
                del error  # Its traceback refers to this frame.
        if type(self.serializer) is NoOpSerializer:
            return reply.result
        return self.serializer.deserialize_entity(ctxt, reply.result)


def answers_of(
    pending: PendingAnswers, counted: Future[QueueInfo] | None, unreachable: TransportUnavailable | None
) -> Answers:
    """What `ping` returns; `unreachable` is why the request could not be sent.

    Raises:
        TransportUnavailable: `unreachable`, if the message system knows of no servers.
    """
    found = Answers({**answer, "seconds": round(at - pending.began, 6)} for answer, at in pending.answers)
    found.expected = consumers_of(counted, len(found))
    # If the message system knows of servers, one that cannot be reached is frozen: it counts as one without an answer.
    if unreachable is not None and not found and not found.expected:
        raise unreachable
    return found


def consumers_of(counted: Future[QueueInfo] | None, answered: int) -> int | None:
    """The number of consumers, or of answers if that is higher; None if it is unknown."""
    if counted is None:
        return None
    try:
        return max(answered, counted.result(0).consumers)
    except MessageUndeliverable:
        return answered
    except (MessagingException, TimeoutError):
        return None


def _no_method(ctxt: Any, method: Any, kwargs: dict[str, Any]) -> Exception:
    """The error for a verb that was called without a method's name, or without the context before it."""
    names = "".join(f", {name}=..." for name in kwargs)
    if method == "":
        if isinstance(ctxt, str):
            return TypeError(f"the caller's context is missing, which comes before the method: ({{}}, {ctxt!r}{names})")
        return TypeError(f"the method's name is missing: it comes after the context, (ctxt, 'METHOD'{names})")
    hint = f"; the context comes before it: ({{}}, {ctxt!r}{names})" if isinstance(ctxt, str) else ""
    return SerializationError(f"a method's name is a string, not {type(method).__name__}{hint}")
