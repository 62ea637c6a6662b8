"""Sent: the requests and notifications that were sent over a message system in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from msgbus import payload as payloads
from msgbus.deadline import checked_seconds
from msgbus.drivers.base import Address, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import context_of, decode_request
from msgbus.exceptions import SerializationError
from msgbus.message import PING_NAMESPACE, Request

Verb = Literal["call", "multicall", "gather", "cast", "fanout_cast"]
CHECK_INTERVAL = 0.01
"""Seconds between two looks of a task that waits."""


class SentRequest(NamedTuple):
    """A request, as its sender's serializer has made it.

    Attributes:
        verb: how it was sent: ``call``, ``multicall``, ``gather``, ``cast`` or ``fanout_cast``.
        topic: of the target.
        method: its name.
        args: the arguments.
        server: the one server that it was sent to; None where any will do, and for all of them.
        context: the caller's.
        exchange: of the target.
        namespace: of the target.
        version: of the target.
    """

    verb: Verb
    topic: str
    method: str
    args: dict[str, Any]
    server: str | None = None
    context: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it
    exchange: str = ""
    namespace: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        args = ", ".join(f"{name}={value!r}" for name, value in self.args.items())
        where = self.topic if self.server is None else f"{self.topic}, server {self.server}"
        return f"{self.verb} {self.method}({args}) to {where}"


class SentNotification(NamedTuple):
    """A notification. The last three are empty in one that `msgbus.rpc.notify` has sent with a message of another form.

    Attributes:
        topic: where it was sent to, with the priority at its end where the notifier writes it so.
        payload: what it says.
        event_type: what has happened.
        priority: as it is written in the message, such as ``INFO``.
        publisher_id: who says so.
        context: the sender's.
    """

    topic: str
    payload: Any
    event_type: str = ""
    priority: str = ""
    publisher_id: str = ""
    context: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it

    def __str__(self) -> str:
        return f"notification {self.event_type} {self.payload!r} to {self.topic}"


Found = TypeVar("Found", SentRequest, SentNotification)


class Sent:
    """What was sent, each request and notification once, however often it was repeated. Any thread.

    What servers answer is not in it, nor are pings and other requests to msgbus itself.
    """

    def __init__(self) -> None:
        self._came = threading.Condition()
        self._clear()

    def _clear(self) -> None:
        self._requests: list[SentRequest] = []
        self._notifications: list[SentNotification] = []
        self._ids: set[str] = set()

    def clear(self) -> None:
        """Forget what was sent before."""
        with self._came:
            self._clear()

    @property
    def requests(self) -> list[SentRequest]:
        """All requests, in the order in which they were sent."""
        with self._came:
            return list(self._requests)

    @property
    def calls(self) -> list[SentRequest]:
        """The requests that want an answer, sent by ``call``, ``multicall`` and ``gather``."""
        return [request for request in self.requests if request.verb in ("call", "multicall", "gather")]

    @property
    def casts(self) -> list[SentRequest]:
        """The requests of ``cast`` and ``cast_many``."""
        return [request for request in self.requests if request.verb == "cast"]

    @property
    def fanouts(self) -> list[SentRequest]:
        """The requests of ``fanout_cast``."""
        return [request for request in self.requests if request.verb == "fanout_cast"]

    @property
    def notifications(self) -> list[SentNotification]:
        """All notifications, in the order in which they were sent."""
        with self._came:
            return list(self._notifications)

    def expect(
        self,
        verb: Verb,
        method: str,
        args: Mapping[str, Any] | None = None,
        *,
        topic: str | None = None,
        server: str | None = None,
        timeout: float = 5.0,
    ) -> SentRequest:
        """Return the first request that fits; wait for it if it has not been sent yet.

        Args:
            verb: how it is sent.
            method: its name.
            args: all arguments; None: any.
            topic: of the target; None: any.
            server: of the target; None: any, and none.
            timeout: seconds for which it waits.

        Raises:
            AssertionError: none was sent in that time. The text has all that were.
        """
        fits = _request_filter(verb, method, args, topic, server)
        return self._wait_for(lambda: next(filter(fits, self._requests), None), f"{verb} {method}", timeout)

    async def aexpect(
        self,
        verb: Verb,
        method: str,
        args: Mapping[str, Any] | None = None,
        *,
        topic: str | None = None,
        server: str | None = None,
        timeout: float = 5.0,
    ) -> SentRequest:
        """As `expect`, for a test that runs on an event loop."""
        fits = _request_filter(verb, method, args, topic, server)
        return await self._await(lambda: next(filter(fits, self._requests), None), f"{verb} {method}", timeout)

    def expect_notification(
        self, event_type: str, *, priority: str | None = None, topic: str | None = None, timeout: float = 5.0
    ) -> SentNotification:
        """Return the first notification that fits; wait for it if it has not been sent yet.

        Args:
            event_type: what has happened.
            priority: its priority, in capital or small letters; None: any.
            topic: where it is sent to; None: anywhere.
            timeout: seconds for which it waits.

        Raises:
            AssertionError: none was sent in that time. The text has all that were.
        """
        fits = _notification_filter(event_type, priority, topic)
        what = f"notification {event_type}"
        return self._wait_for(lambda: next(filter(fits, self._notifications), None), what, timeout)

    async def aexpect_notification(
        self, event_type: str, *, priority: str | None = None, topic: str | None = None, timeout: float = 5.0
    ) -> SentNotification:
        """As `expect_notification`, for a test that runs on an event loop."""
        fits = _notification_filter(event_type, priority, topic)
        what = f"notification {event_type}"
        return await self._await(lambda: next(filter(fits, self._notifications), None), what, timeout)

    def _wait_for(self, look: Callable[[], Found | None], what: str, timeout: float) -> Found:
        with self._came:
            self._came.wait_for(look, checked_seconds(timeout))
            found = look()
        if found is None:
            raise AssertionError(self._missing(what, timeout))
        return found

    async def _await(self, look: Callable[[], Found | None], what: str, timeout: float) -> Found:
        end = Loop.now() + checked_seconds(timeout)
        while True:
            with self._came:
                found = look()
            if found is not None:
                return found
            if Loop.now() >= end:
                raise AssertionError(self._missing(what, timeout))
            await asyncio.sleep(CHECK_INTERVAL)

    def _missing(self, what: str, timeout: float) -> str:
        sent = [str(one) for one in (*self.requests, *self.notifications)] or ["nothing"]
        return "\n    ".join([f"no {what} that fits was sent within {timeout:g} s; there was:", *sent])

    def watch(self, address: Address, message: Message) -> None:
        """Take a message that is sent; see `msgbus.drivers.fake.Bus.watch`."""
        if address.kind in ("inbox", "dead"):
            return
        try:
            request = decode_request(message.body, message.content_type)
        except SerializationError:
            notification = _notification_of(address, message)
            if notification is not None:
                self._add(self._notifications, notification, message.id)
            return
        if request.namespace != PING_NAMESPACE:
            self._add(self._requests, _request_of(address, request), request.unique_id or message.id)

    def _add(self, to: list[Found], found: Found, unique_id: str) -> None:
        with self._came:
            if unique_id not in self._ids:
                self._ids.add(unique_id)
                to.append(found)
                self._came.notify_all()


def _request_of(address: Address, request: Request) -> SentRequest:
    if address.kind == "fanout":
        verb: Verb = "fanout_cast" if request.call_id is None else "gather"
    elif request.call_id is None:
        verb = "cast"
    else:
        verb = "call" if request.window is None else "multicall"
    return SentRequest(
        verb,
        address.topic,
        request.method,
        request.args,
        address.server if address.kind == "server" else None,
        request.context,
        address.exchange,
        request.namespace,
        request.version,
    )


def _notification_of(address: Address, message: Message) -> SentNotification | None:
    try:
        payload = payloads.decode(message.body, message.content_type)
    except SerializationError:
        return None
    context = context_of(payload)
    event_type, priority, publisher_id = (payload.get(key) for key in ("event_type", "priority", "publisher_id"))
    if "payload" in payload and isinstance(event_type, str):
        says = (event_type, str(priority or ""), str(publisher_id or ""))
        return SentNotification(address.topic, payload["payload"], *says, context)
    own = {key: value for key, value in payload.items() if not key.startswith("_")}
    return SentNotification(address.topic, own, context=context)


def _request_filter(
    verb: Verb, method: str, args: Mapping[str, Any] | None, topic: str | None, server: str | None
) -> Callable[[SentRequest], bool]:
    def fits(sent: SentRequest) -> bool:
        return (
            (sent.verb, sent.method) == (verb, method)
            and (args is None or sent.args == args)
            and (topic is None or sent.topic == topic)
            and (server is None or sent.server == server)
        )

    return fits


def _notification_filter(
    event_type: str, priority: str | None, topic: str | None
) -> Callable[[SentNotification], bool]:
    def fits(sent: SentNotification) -> bool:
        return (
            sent.event_type == event_type
            and (priority is None or sent.priority.lower() == priority.lower())
            and (topic is None or sent.topic == topic)
        )

    return fits
