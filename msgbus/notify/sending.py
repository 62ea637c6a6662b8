"""Sends one notification to one address: what is written, where it is stored, and how often it is tried."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from msgbus.base_transport import BaseTransport
from msgbus.drivers.base import Address, Capability, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_notification
from msgbus.exceptions import OutcomeUnknown, TransportBlocked, TransportUnavailable
from msgbus.interceptors import Deadline, InterceptedRequest, Interceptor, chain, checked_metadata
from msgbus.message import CONTENT_TYPES, new_id
from msgbus.serializer import NoOpSerializer
from msgbus.target import Target
from msgbus.transport import Transport

WHAT = "a notification to"
"""How the text of an error begins."""
MAY_PASS = (TransportUnavailable, TransportBlocked, OutcomeUnknown)
"""After these errors it may be sent again: listeners drop a second copy, which has the same id."""
RETRY_PAUSE = 1.0
"""Seconds between two tries, where their number is limited."""


class NotificationMessage:
    """A notification on its way to one address, over a transport for threads or for asyncio. Nothing here waits.

    Attributes:
        transport: over which.
        address: where to.
        repeats: it is sent again until its deadline.
        deadline: when it has to be sent, in seconds of `Loop.now`.
        event: its type, for errors.
        request: it, as interceptors see it.
    """

    def __init__(
        self, transport: BaseTransport, address: Address, context: dict[str, Any], message: dict[str, Any], retry: int
    ) -> None:
        """Begin one; `context` and `message` are plain data, `retry` is as for `Notifier`."""
        # Copies: what interceptors change here must not reach the other topics and drivers.
        self.transport = transport
        self.address = address
        self.repeats = retry < 0
        self.deadline = Loop.now() + transport.option("rpc_response_timeout")
        self.event = str(message.get("event_type", "notification"))  # The classic API sends any dict.
        self._retry = retry
        target = Target(exchange=address.exchange or None, topic=address.topic)
        self.request = InterceptedRequest(
            "notification", "", target, dict(context), dict(message), {}, Deadline(self.deadline)
        )

    @property
    def fallback(self) -> Address | None:
        """Where it goes if nobody listens: it is stored, or there is no such place."""
        if Capability.STORAGE not in self.transport.driver.capabilities:
            return None
        return self.address._replace(kind="stored")

    def encode(self, request: InterceptedRequest, *, enveloped: bool) -> Message:
        """Write it, as its interceptors have left it.

        Raises:
            SerializationError: it holds a value that cannot be sent.
        """
        transport = self.transport
        content_type = CONTENT_TYPES[transport.option("rpc_codec")]
        unique_id = new_id()
        body = encode_notification(
            dict(request.args),
            NoOpSerializer().serialize_context(request.context),
            unique_id,
            content_type,
            lossy=transport.lossy,
            metadata=checked_metadata(request.metadata),
            enveloped=enveloped,
        )
        # It does not expire: it waits for a listener as long as it takes.
        return Message(body, content_type, unique_id, None, True, self.deadline - Loop.now())

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each further try; ends when there is to be none."""
        for _ in range(max(0, self._retry)):
            left = self.deadline - Loop.now()
            if left <= RETRY_PAUSE:
                return
            yield RETRY_PAUSE


def send_notification(
    transport: Transport,
    address: Address,
    context: Any,
    message: dict[str, Any],
    *,
    retry: int,
    enveloped: bool,
    interceptors: Sequence[Interceptor],
) -> None:
    """Send a notification, and return when the message system has taken it.

    If nobody has ever listened to the address, a message system that can store makes a queue for the first listener.

    Args:
        transport: over which.
        address: where to.
        context: a dict.
        message: what listeners get; plain data.
        retry: how often it is sent again; -1: until its deadline, ``rpc_response_timeout`` from now.
        enveloped: JSON has oslo.messaging's envelope around it.
        interceptors: around the sending.

    Raises:
        MessageUndeliverable: nobody listens, and the message system stores nothing.
        SerializationError: it holds a value that cannot be sent.
        MessageTooLarge: it is larger than the message system accepts.
        MessagingException: why it was not taken.
    """
    outgoing = NotificationMessage(transport, address, context, message, retry)

    def send(request: InterceptedRequest) -> None:
        encoded = outgoing.encode(request, enveloped=enveloped)
        pauses = outgoing.pauses()
        with transport.slot(outgoing.deadline, outgoing.event, address):
            while True:
                try:
                    transport.send_and_wait(
                        address,
                        encoded,
                        outgoing.deadline,
                        what=WHAT,
                        mandatory=True,
                        repeat=outgoing.repeats,
                        fallback=outgoing.fallback,
                    )
                    return
                except MAY_PASS:
                    if (pause := next(pauses, None)) is None:
                        raise
                time.sleep(pause)

    chain(interceptors, send)(outgoing.request)
