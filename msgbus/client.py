"""RPCClient: the four verbs."""

from __future__ import annotations

import copy
import math
import threading
import time
from concurrent.futures import Future
from typing import Any, Literal

from msgbus.deadline import bounded
from msgbus.dispatcher import version_is_compatible
from msgbus.drivers.base import Address, Capability, Depth, Message, Sent
from msgbus.exceptions import (
    CallCancelled,
    InvalidTarget,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
    OutcomeUnknown,
    RPCVersionCapError,
    SerializationError,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.message import (
    AT_LEAST_ONCE,
    CONTENT_TYPES,
    PING_NAMESPACE,
    POLICIES,
    Control,
    Hints,
    Request,
    encode_repeat,
    encode_request,
    new_id,
)
from msgbus.replies import Pending, PendingAnswers, PendingCall, PendingStream
from msgbus.serializer import NoOpSerializer, Serializer, check_serializer
from msgbus.streams import Stream
from msgbus.target import Target, topic_hint
from msgbus.transport import Transport, check_transport

LOG = get_logger(__name__)

Delivery = Literal["at_most_once", "at_least_once"]

STREAM_WINDOW = 100
"""Items that a server may send ahead of what the client has taken."""
INSPECT_TIMEOUT = 0.5
"""Seconds for finding out, after a timeout, what to tell about it."""
PATIENCE = 0.95
"""The share of a call's time in which its request has to be handed over."""
_UNSET: Any = object()


class Answers(list[dict[str, Any]]):
    """What `RPCClient.ping` has gathered: a list with one dict for each server that has answered.

    Attributes:
        expected: how many servers the message system knows, or None where it does not say. Those that have not answered
            are frozen, busy with all their threads, or have just gone.
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
            means none. (Servers of msgbus show life by themselves.)
        delivery: ``"at_most_once"`` or ``"at_least_once"``; None means the option ``rpc_delivery``.

    Raises:
        InvalidTarget: there is no topic.
        ValueError: a version, a timeout or a delivery policy that is none.
        TypeError: the transport or the target is something else.
    """

    def __init__(
        self,
        transport: Transport,
        target: Target,
        timeout: float | None = None,
        version_cap: str | None = None,
        serializer: Serializer | None = None,
        call_monitor_timeout: float | None = None,
        delivery: Delivery | None = None,
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
        self._settle()

    def _settle(self) -> None:
        """Work out once what every request of this client needs."""
        option = self.transport.option
        if not isinstance(self.target, Target):
            raise TypeError(f"whom a client calls is a Target: Target(topic={self.target!r})")
        if not self.target.topic:
            raise InvalidTarget(f"a client's target needs a topic{topic_hint(self.target)}", self.target)
        for version in (self.target.version, self.version_cap):
            if version is not None:
                version_is_compatible(version, version)
        policy = self.delivery or option("rpc_delivery")
        if policy not in POLICIES:
            raise ValueError(f"delivery is 'at_most_once' or 'at_least_once', not {policy!r}")
        self._policy: str = policy
        self._repeatable = policy == AT_LEAST_ONCE
        # Where the message system may lose an answer that it took, the server sends it until this side confirms it.
        keeps = {Capability.INBOX_KEEPS, Capability.DURABLE} <= self.transport.driver.capabilities
        self._confirms = self._repeatable and not keeps
        self._address = self.transport.address(self.target)
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
        delivery: Delivery | None = _UNSET,
        deadline: float | None = _UNSET,
    ) -> RPCClient:
        """Return a client that differs in what is given; None is a value like others, and takes a setting back.

        `deadline` is in seconds, and bounds a whole `multicall`, from its beginning to its last item.

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
        prepared._settle()
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
            ctxt: the caller's context: a dict, or what the serializer makes one of.
            method: its name.
            kwargs: its arguments.

        Raises:
            MessageUndeliverable: nobody listens at the target.
            TransportUnavailable, TransportBlocked, MessageTooLarge: it could not be handed over.
            MessagingTimeout: no answer by the deadline; `ServerLost`: the server that ran it fell silent.
            OutcomeUnknown: under at_most_once, it may or may not have run.
            RemoteError: what the method raised, or that exception itself where it is allowed to be made again.
            SerializationError: an argument or the result cannot travel, or what came cannot be read.
            RPCVersionCapError, InvalidTarget: the request is not allowed as it is.
            TypeError: the context or the method's name is missing.
        """
        pending = self._new_pending(PendingCall, method, time.monotonic())
        waiter = _Waiter()
        pending.wake = waiter.wake
        reply = self._exchange(ctxt, method, kwargs, pending, waiter)
        error = pending.failure_of(reply)
        if error is not None:
            raise error
        if type(self.serializer) is NoOpSerializer:
            return reply.result
        return self.serializer.deserialize_entity(ctxt, reply.result)

    def _exchange(self, ctxt: Any, method: str, kwargs: dict[str, Any], pending: PendingCall, waiter: _Waiter) -> Any:
        transport = self.transport
        acquire(transport, pending.deadline)
        try:
            message = self._message(ctxt, method, kwargs, pending, time.monotonic())  # There may have been a wait.
            add_to_router(transport, pending)
            try:
                self._send(message, pending)
                while pending.answer is None:
                    waiter.wait(pending)
                    if pending.answer is None:
                        self._look_at(pending)
                return pending.answer
            finally:
                transport.router.discard(pending)
                if len(pending.servers) > 1 or (pending.servers and pending.answer is None):
                    self._cancel(pending)
        finally:
            transport.window.release()

    def _look_at(self, pending: Pending) -> None:
        """Do what is due for a call that still waits, and raise what there is to raise."""
        now, up_since = time.monotonic(), self.transport.driver.up_since
        while pending.orphans:
            self._send_cancel(pending, pending.orphans.pop())
        error = pending.check(now, up_since)
        if error is None:
            if pending.needs_repeat(now, up_since, self.transport.repeat_after):
                self._send_again(pending, now)
            return
        if type(error) is MessagingTimeout:
            error = MessagingTimeout(self._explain_timeout(pending))
        raise error

    def _cancel(self, pending: PendingCall) -> None:
        """Tell every server that still runs a call that its answer is not needed any more."""
        answered = None if pending.answer is None else pending.answer.server
        for inbox, server in list(pending.servers.items()):
            if answered is None or server.name != answered:
                self._send_cancel(pending, inbox)

    def _send_cancel(self, pending: Pending, inbox: str) -> None:
        try:
            self.transport.send_control(inbox, Control(pending.id, "cancel"), self._content_type)
        except MessagingException as exc:
            LOG.debug("%s: the server at inbox %s could not be told to stop: %s", pending.describe, inbox, exc)

    def _send_again(self, pending: Pending, now: float) -> None:
        """Send a request once more whose first copy, or whose answer, seems to be lost."""
        message = pending.request
        if message is None:
            return
        LOG.info("%s is sent again: no server shows life", pending.describe)
        left = pending.deadline - now
        body = encode_repeat(message.body, message.content_type, left)
        self.transport.send_until(
            pending.deadline,
            pending.address,
            Message(body, message.content_type, message.id, left, message.durable),
            mandatory=True,
            on_outcome=lambda error: pending.on_repeated(error, time.monotonic()),
            retry_undeliverable=pending.deadline,
            wanted=lambda: pending in self.transport.router,
            request=True,
        )

    def cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """Have `method` run on one server (with ``fanout=True`` in the target: on all), and do not wait for it.

        Returns once the message system has taken responsibility for the request. Then that waits for a server for as
        long as it takes; only where a `timeout` was given is it dropped if no server has begun it by then.

        It raises what `call` raises, but for what has to do with the answer.
        """
        self._cast(self._address, ctxt, method, kwargs)

    def fanout_cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """Have `method` run on every server of the topic. That there is none is no error.

        It raises what `cast` raises.
        """
        self._cast(Address("fanout", self._address.exchange, self._address.topic), ctxt, method, kwargs)

    def _cast(self, address: Address, ctxt: Any, method: str, kwargs: dict[str, Any]) -> None:
        now = time.monotonic()
        deadline = now + self._seconds  # Not the one that a handler inherits: nobody waits for what a cast does.
        acquire(self.transport, deadline)
        try:
            # The deadline bounds the handing over. What has been handed over waits for a server as long as it takes,
            # unless the caller gave a time.
            left = deadline - time.monotonic()
            ttl = None if self.timeout is None else left
            request = self._request(ctxt, method, kwargs, Hints(ttl, time.time(), self._policy), new_id())
            durable = address.kind != "fanout"
            body = encode_request(request, self._content_type, lossy=self.transport.lossy)
            message = Message(body, self._content_type, request.unique_id, ttl, durable, left)
            try:
                wait_until_sent(
                    self._hand_over(address, message, deadline), deadline, f"{method!r} on {address}", self.transport
                )
            except TransportUnavailable as exc:
                if not exc.maybe_delivered or self._repeatable:
                    raise
                raise OutcomeUnknown(f"{method!r} on {address}: it may or may not have been delivered: {exc}") from exc
        finally:
            self.transport.window.release()

    def multicall(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> Stream:
        """Run a generator method on one server and iterate over its values as it yields them.

        The request is sent at once. `timeout` bounds the wait for each item, ``prepare(deadline=...)`` the whole. The
        server's generator waits while this side does not consume, and is closed when the iterator is closed or
        dropped. A method that returns plainly yields one item.

        It raises what `call` raises; what ends the remote generator is raised from the iteration, after the values
        before it.
        """
        now = time.monotonic()
        end = bounded(float("inf") if self.deadline is None else now + self.deadline)
        pending = self._new_pending(
            PendingStream, method, now, window=STREAM_WINDOW, idle_timeout=self._seconds, end=end
        )
        waiter = _Waiter()
        pending.wake = waiter.wake
        transport = self.transport
        acquire(transport, pending.deadline)
        try:
            now = time.monotonic()  # There may have been a wait.
            left = None if end == float("inf") else end - now
            message = self._message(ctxt, method, kwargs, pending, now, window=STREAM_WINDOW, end=left)
            add_to_router(transport, pending)
            self._send(message, pending)
        except BaseException:
            transport.router.discard(pending)
            transport.window.release()
            raise
        return Stream(transport, pending, waiter.wait, self._look_at, self._content_type, self.serializer, ctxt)

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
        now = time.monotonic()
        target = self.target(namespace=PING_NAMESPACE, version=None, fanout=not self.target.server or None)
        client = self.prepare(timeout=timeout, version_cap=None)
        client.serializer = NoOpSerializer()  # There is no context, and the answers are plain.
        client.target, client._address = target, self.transport.address(target)
        pending = client._new_pending(PendingAnswers, "ping", now)
        waiter = _Waiter()
        pending.wake = waiter.wake
        message = client._message({}, "ping", {}, pending, now)
        add_to_router(self.transport, pending)
        found = Answers()
        try:
            client._send(message, pending)
            # Each server of a topic consumes from it, so many answers there will be.
            counted = self._count_consumers(self.transport.address(self.target(fanout=None)), waiter)
            while time.monotonic() < pending.deadline and pending.send_error is None:
                waiter.wait(pending)
                while answers := pending.answers:
                    answer = answers.pop(0).result
                    if isinstance(answer, dict):
                        found.append({**answer, "seconds": round(time.monotonic() - now, 6)})
                found.expected = _consumers_of(counted, 0.0, len(found))
                if found and len(found) >= (found.expected or (1 if target.server else math.inf)):
                    break
            found.expected = _consumers_of(counted, INSPECT_TIMEOUT, len(found))
            error = pending.send_error
            # Where the message system knows servers, one that cannot be reached is frozen, and does not answer.
            frozen = isinstance(error, TransportUnavailable) and (found or found.expected)
            if error is not None and not frozen:
                raise error
        finally:
            self.transport.router.discard(pending)
        return found

    def _count_consumers(self, address: Address, waiter: _Waiter) -> Future[Depth] | None:
        """Ask how many consumers an address has; None where the driver cannot say. The answer wakes the waiter."""
        driver = self.transport.driver
        if Capability.INSPECT not in driver.capabilities:
            return None
        counted = driver.inspect(address)
        counted.add_done_callback(lambda _counted: waiter.wake())
        return counted

    def _request(self, ctxt: Any, method: str, kwargs: dict[str, Any], hints: Hints, unique_id: str) -> Request:
        if not method or not isinstance(method, str):
            raise _no_method(ctxt, method, kwargs)
        if self.version_cap is not None and not self.can_send_version():
            raise RPCVersionCapError(self.target.version, self.version_cap)
        serializer = self.serializer
        context = serializer.serialize_context(ctxt)
        if type(serializer) is not NoOpSerializer:
            kwargs = {name: serializer.serialize_entity(ctxt, value) for name, value in kwargs.items()}
        return Request(
            method,
            kwargs,
            unique_id,
            self.target.namespace,
            self.target.version,
            context=context,
            hints=hints,
        )

    def _new_pending(self, cls: Any, method: str, now: float, **more: Any) -> Any:
        if cls is not PendingAnswers and self._address.kind == "fanout":
            raise InvalidTarget("an answer cannot be had from all servers at once; cast, or name a server", self.target)
        return cls(
            new_id(),
            method,
            self._address,
            now=now,
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
        request = self._request(ctxt, method, kwargs, hints, pending.id)
        request.call_id = pending.id
        request.reply_to = self.transport.inbox(pending.deadline)
        request.monitor = self.call_monitor_timeout
        body = encode_request(request, self._content_type, lossy=self.transport.lossy)
        # The driver knows best why a request was not handed over: it says so a moment before the caller gives up.
        return Message(body, self._content_type, request.unique_id, ttl, self._repeatable, ttl * PATIENCE)

    def _send(self, message: Message, pending: Pending) -> Future[Sent]:
        if self._repeatable:
            pending.request = message
            self.transport.watch_connection()
        sent = self._hand_over(pending.address, message, pending.deadline, pending)
        sent.add_done_callback(lambda future: pending.on_sent(future.exception(), time.monotonic()))
        return sent

    def _hand_over(
        self, address: Address, message: Message, deadline: float, pending: Pending | None = None
    ) -> Future[Sent]:
        mandatory = address.kind != "fanout"
        if self._repeatable:
            wanted = None if pending is None else (lambda: pending in self.transport.router)
            return self.transport.send_repeatedly(
                deadline, address, message, mandatory=mandatory, wanted=wanted, request=True
            )
        return self.transport.send_request(address, message, mandatory=mandatory)

    def _explain_timeout(self, pending: Pending) -> str:
        """What is known of a call whose deadline has passed: the one thing an operator has to go by."""
        transport = self.transport
        seconds = pending.deadline - pending.began
        known = [f"{pending.describe}: no answer within {seconds:.4g} s over {transport.driver.state}"]
        known.append("the message system has taken the request" if pending.sent else "it is not known to be delivered")
        for server in list(pending.servers.values()):
            silent = time.monotonic() - server.last_sign
            known.append(f"server {server.name!r} runs it, last sign of life {silent:.1f} s ago")
        if not pending.servers:
            depth = transport.inspect(pending.address, INSPECT_TIMEOUT)
            if depth is not None:
                plural = "" if depth.depth == 1 else "s"
                waiting = "" if depth.depth is None else f", {depth.depth} message{plural} waiting"
                known.append(f"no server said that it began; consumers there: {depth.consumers}{waiting}")
        up_since = transport.driver.up_since
        keeps = Capability.INBOX_KEEPS in transport.driver.capabilities
        if not keeps and not self._repeatable and up_since is not None and up_since > pending.began:
            known.append(
                "this side's connection was lost meanwhile, and the answer may have been lost with it, which does not "
                "happen under delivery='at_least_once'"
            )
        return "; ".join(known)


def _no_method(ctxt: Any, method: Any, kwargs: dict[str, Any]) -> Exception:
    """The error for a verb that was called without a method's name, or without the context before it."""
    names = "".join(f", {name}=..." for name in kwargs)
    if method == "":
        if isinstance(ctxt, str):
            return TypeError(f"the caller's context is missing, which comes before the method: ({{}}, {ctxt!r}{names})")
        return TypeError(f"the method's name is missing: it comes after the context, (ctxt, 'METHOD'{names})")
    hint = f"; the context comes before it: ({{}}, {ctxt!r}{names})" if isinstance(ctxt, str) else ""
    return SerializationError(f"a method's name is a string, not {type(method).__name__}{hint}")


def _consumers_of(counted: Future[Depth] | None, timeout: float, answered: int) -> int | None:
    """How many consumers were counted, or as many as have answered if those are more; None where nobody knows."""
    if counted is None:
        return None
    try:
        return max(answered, counted.result(timeout).consumers)
    except MessageUndeliverable:
        return answered
    except (MessagingException, TimeoutError):
        return None


class _Waiter:
    """Blocks one thread until its call has news."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """End `wait`, or the next one. Any thread, any number of times."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # It was free already: the news is known, and nobody has looked yet.

    def wait(self, pending: Pending) -> None:
        """Return when there is news, or when the call has to be looked at again."""
        left = pending.next_check() - time.monotonic()
        self._lock.acquire(timeout=min(max(left, 0.0), threading.TIMEOUT_MAX))


def wait_until_sent(sent: Future[Any], deadline: float, what: str, transport: Transport) -> None:
    """Wait until the message system has taken a message.

    Args:
        sent: of the driver.
        deadline: seconds of `time.monotonic`. The driver itself knows best why it has not sent it by then, and gets a
            moment to say so.
        what: begins the text of a timeout.
        transport: where it is sent.

    Raises:
        TransportUnavailable: nobody said what has become of it: it may have been delivered.
        MessagingException: why it was not taken.
    """
    try:
        sent.result(max(0.0, deadline - time.monotonic()) + INSPECT_TIMEOUT)
    except MessagingException:
        raise
    except TimeoutError:
        raise TransportUnavailable(
            f"{what}: {transport.driver.state} did not confirm it by the deadline; it may or may not have been "
            "delivered",
            maybe_delivered=True,
        ) from None


def add_to_router(transport: Transport, pending: Pending) -> None:
    """Have replies to a call find it.

    Raises:
        CallCancelled: the transport is closed: nobody would tell the call.
    """
    transport.router.add(pending)
    if transport.closed:  # Looked at last: what is closed from now on finds the call there.
        transport.router.discard(pending)
        raise CallCancelled(f"{pending.describe}: the transport to {transport.url} was closed")


def acquire(transport: Transport, deadline: float) -> None:
    """Take a place in the send window.

    Raises:
        MessagingTimeout: there is no time left at all, or no place became free by `deadline` (seconds of
            `time.monotonic`).
    """
    if deadline <= time.monotonic():
        raise MessagingTimeout(
            "nothing was sent: the timeout, or what was left to the request whose handler makes this call, is over"
        )
    if not transport.window.acquire(max(0.0, deadline - time.monotonic())):
        raise MessagingTimeout(
            f"{transport.window.size} requests of this process (option rpc_send_window) were still unfinished at the "
            "deadline; nothing "
            "was sent"
        )
