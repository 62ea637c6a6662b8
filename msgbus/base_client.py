"""BaseClient: what the clients for threads and for asyncio have in common: settings, and the messages they send."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from msgbus.answers import PendingAnswers
from msgbus.base_transport import BaseTransport
from msgbus.deadline import bounded, checked_seconds
from msgbus.drivers.base import Capability, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_request
from msgbus.exceptions import (
    InvalidTarget,
    MessagingException,
    MessagingTimeout,
    RPCVersionCapError,
    SerializationError,
)
from msgbus.interceptors import Deadline, InterceptedRequest, Kind, checked_interceptors, checked_metadata
from msgbus.message import (
    AT_LEAST_ONCE,
    AT_MOST_ONCE,
    CONTENT_TYPES,
    PING_NAMESPACE,
    POLICIES,
    Hints,
    Policy,
    Request,
    new_id,
)
from msgbus.pending import Pending, PendingCall
from msgbus.pending_stream import PendingStream
from msgbus.sending import server_named_by
from msgbus.serializer import NoOpSerializer, Serializer
from msgbus.target import Target, topic_hint
from msgbus.typed_client import make_proxy
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
Api = TypeVar("Api")


class BaseClient:
    """See `msgbus.RPCClient`, whose arguments these are.

    Attributes:
        asynchronous: its verbs are awaited, and its interceptors are ``async``.
    """

    asynchronous = False

    def __init__(
        self,
        transport: BaseTransport,
        target: Target,
        timeout: float | None = None,
        version_cap: str | None = None,
        serializer: Serializer | None = None,
        call_monitor_timeout: float | None = None,
        delivery: Policy | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        self.transport = transport
        self.target = target
        self.timeout = timeout
        self.version_cap = version_cap
        self.serializer = serializer or NoOpSerializer()
        self.call_monitor_timeout = call_monitor_timeout
        self.delivery = delivery
        self.deadline: float | None = None
        self.topics: Sequence[str] | None = None
        self.interceptors = checked_interceptors(interceptors, asynchronous=self.asynchronous, owner="this client")
        self._metadata: dict[str, str] | None = None
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
        self._seconds = checked_seconds(option("rpc_response_timeout") if self.timeout is None else self.timeout)
        if self.deadline is not None:
            self.deadline = checked_seconds(self.deadline, "a deadline")
        if self.call_monitor_timeout is not None:
            self.call_monitor_timeout = checked_seconds(self.call_monitor_timeout, "call_monitor_timeout")
        self._grace: float = option("rpc_reply_grace")
        self._content_type = CONTENT_TYPES[option("rpc_codec")]

    @property
    def content_type(self) -> str:
        """That of its requests."""
        return self._content_type

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
        topics: Sequence[str] | None = _UNSET,
    ) -> Client:
        """Return a client with other settings; None restores the default.

        `deadline` is in seconds, and bounds a whole `multicall`, from its beginning to its last item, and a whole
        `cast_many`, until the last cast is confirmed. `topics` are those that `gather` asks, in place of the target's;
        other verbs go to the target's.

        Raises:
            InvalidTarget, ValueError: as for the constructor.
            TypeError: `topics` is one string.
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
        if topics is not _UNSET:
            if isinstance(topics, str):
                raise TypeError(f"topics is a list of names: [{topics!r}]")
            prepared.topics = None if topics is None else tuple(topics)  # It may be a generator, or change.
        prepared._derive()
        return prepared

    def proxy(self, api: Callable[..., Api], ctxt: Any = None) -> Api:
        """Return an object with the methods of a class, which calls the server's methods of these names.

        ::

            class Images(Protocol):
                target: ClassVar[Target] = Target(namespace="images", version="1.2")

                def resize(self, image: Image, size: tuple[int, int]) -> Thumbnail: ...
                def tiles(self, image: Image) -> Iterator[Tile]: ...
                @msgbus.one_way
                def forget(self, name: str) -> None: ...

            images = client.proxy(Images)
            small = images.resize(image=Image("cat.png"), size=(30, 20))

        Type checkers see the class's methods. Arguments are turned into plain data by their annotations, and results
        are what the methods are declared to return. A method that returns an ``Iterator[T]`` or a ``Generator`` is a
        `multicall`, one that is marked with `one_way` a `cast`, and all others are a `call`. For a client of
        `msgbus.aio` methods are declared with ``async def``, and streams with ``def`` and ``AsyncIterator[T]``.

        A `Target` in the class's attribute ``target`` gives the namespace and version.

        Args:
            api: the class, often a `typing.Protocol`. Its methods do nothing. Its annotations are read once.
            ctxt: the caller's context in each call; None means an empty one. If a method's first parameter is named
                ``ctxt`` or ``context``, also with an underscore before it, that is the context of the call instead.

        Raises:
            TypeError: `api` is not a class, or has a method that such a client cannot call, or an annotation that
                cannot be used; the text names it.
        """
        return cast(Api, make_proxy(self, api, ctxt, asynchronous=self.asynchronous))

    def can_send_version(self, version: str | None = _UNSET) -> bool:
        """Whether the version cap allows a request of `version` (default: the target's)."""
        if self.version_cap is None:
            return True
        asked = self.target.version if version is _UNSET else version
        return asked is not None and version_is_compatible(self.version_cap, asked)

    def _intercepted(
        self, kind: Kind, ctxt: Any, method: str, kwargs: dict[str, Any], deadline: float, *, fanout: bool = False
    ) -> InterceptedRequest:
        """A request, as its first interceptor gets it.

        Args:
            kind: what it is.
            ctxt: the caller's context.
            method: the method's name.
            kwargs: its arguments.
            deadline: seconds of `Loop.now`, or infinity.
            fanout: it goes to all servers, whatever the target says.

        Raises:
            TypeError, SerializationError: there is no method's name.
        """
        if not method or not isinstance(method, str):
            raise _no_method(ctxt, method, kwargs)
        context = dict(ctxt) if type(ctxt) is dict else ctxt
        target = self.target(fanout=True, server=None) if fanout else self.target
        timed = Deadline(None if deadline == math.inf else deadline)
        return InterceptedRequest(kind, method, target, context, kwargs, {}, timed)

    def _end_of(self, kind: Kind) -> float:
        """The deadline of a request that begins now, in seconds of `Loop.now`; infinity for one that has none."""
        now = Loop.now()
        if kind == "cast":  # The deadline that a handler inherits does not apply: nobody waits for a cast.
            return now + self._seconds
        if kind == "call":
            return bounded(now + self._seconds)
        return bounded(math.inf if self.deadline is None else now + self.deadline)

    def _without_interceptors(self: Client, request: InterceptedRequest) -> Client:
        """A client that sends one request, whose interceptors have all proceeded, in the time that is left to it.

        Raises:
            MessagingTimeout: there is none.
            SerializationError: its metadata cannot be sent.
        """
        client = copy.copy(self)
        client.interceptors = ()
        client._metadata = checked_metadata(request.metadata)
        left = request.time_left
        if left is None:
            return client
        if left <= 0:
            raise MessagingTimeout(f"{request.method!r} on {request.target}: its interceptors took all of its time")
        if request.kind == "multicall":
            client.deadline = left
        else:
            client._seconds = left
        return client

    def _intercepted_cast_message(
        self, ctxt: Any, is_fanout: bool, method: str, kwargs: dict[str, Any], deadline: float
    ) -> tuple[InterceptedRequest, Callable[[InterceptedRequest], None], list[Message]]:
        """What the interceptors of one cast of many need: the request, what writes its message, and where that goes."""
        request = self._intercepted("cast", ctxt, method, dict(kwargs), deadline)
        messages: list[Message] = []

        def write(request: InterceptedRequest) -> None:
            if messages:
                raise MessagingException(
                    "an interceptor called proceed a second time for a cast of cast_many, whose outcome it cannot know"
                )
            client = self._without_interceptors(request)
            messages.append(client._cast_message(request.context, is_fanout, request.method, request.args, deadline))

        return request, write, messages

    def _cast_message(
        self, ctxt: Any, is_fanout: bool, method: str, kwargs: dict[str, Any], deadline: float
    ) -> Message:
        # The deadline bounds the sending. Once the message system has it, it waits for a server as long as it takes,
        # unless the caller gave a time.
        left = deadline - Loop.now()
        ttl = None if self.timeout is None else left
        unique_id = new_id()
        hints = Hints(ttl, time.time(), self._policy)
        if self._metadata is not None:
            hints.metadata = self._metadata
        request = self._request(ctxt, method, kwargs, hints, unique_id)
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
        stream.deadline = min(stream.deadline, stream.end)  # The first item, and all that comes before it, too.
        return stream

    def _stream_request(self, ctxt: Any, method: str, kwargs: dict[str, Any], pending: PendingStream) -> Request:
        left = None if pending.end == math.inf else pending.end - Loop.now()
        return self._request_of(ctxt, method, kwargs, pending, window=STREAM_WINDOW, end=left)

    def _askers(self: Client) -> list[Client]:
        """A client for each topic that a `gather` asks: all its servers, or the one that the target names.

        Raises:
            ValueError: this client asks for at_least_once.
        """
        if self.delivery == AT_LEAST_ONCE:
            raise ValueError(
                "gather is always at_most_once: it is never sent again, since servers that have answered would run "
                "it twice; nothing was sent. Use client.prepare(delivery='at_most_once').gather(...)"
            )
        topics = [self.target.topic] if self.topics is None else dict.fromkeys(self.topics)
        # Where the target names a server, fanout would be the stronger one.
        fanout = not self.target.server or None
        askers = [self.prepare(topic=topic, fanout=fanout, delivery=AT_MOST_ONCE) for topic in topics]
        for asker in askers:
            asker._fallback = None
        return askers

    def _ping_asker(self: Client, timeout: float) -> Client:
        """A client for a ping: all servers of the topic, or the one that the target names, are asked."""
        target = self.target(namespace=PING_NAMESPACE, version=None, fanout=not self.target.server or None)
        client = self.prepare(timeout=timeout, version_cap=None)
        client.serializer = NoOpSerializer()  # There is no context, and the answers are plain.
        client.target, client._address = target, self.transport.address(target)
        client._fallback = None
        return client

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
            raise InvalidTarget(
                "call and multicall cannot be sent to all servers: use gather or fanout_cast, or name a server",
                self.target,
            )
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
        if self._metadata is not None:
            hints.metadata = self._metadata
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


def _no_method(ctxt: Any, method: Any, kwargs: dict[str, Any]) -> Exception:
    """The error for a verb that was called without a method's name, or without the context before it."""
    names = "".join(f", {name}=..." for name in kwargs)
    if method == "":
        if isinstance(ctxt, str):
            return TypeError(f"the caller's context is missing, which comes before the method: ({{}}, {ctxt!r}{names})")
        return TypeError(f"the method's name is missing: it comes after the context, (ctxt, 'METHOD'{names})")
    hint = f"; the context comes before it: ({{}}, {ctxt!r}{names})" if isinstance(ctxt, str) else ""
    return SerializationError(f"a method's name is a string, not {type(method).__name__}{hint}")
