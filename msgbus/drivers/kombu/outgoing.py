"""A message that the kombu driver sends."""

from __future__ import annotations

import time
from concurrent.futures import Future

from msgbus.drivers.base import Address, Message, Sent
from msgbus.exceptions import MessagingException

HOLD_FIRST, HOLD_MAX = 0.1, 1.0
"""Seconds before a message is published again that RabbitMQ did not take: at first, and at the most."""
FOREVER = float("inf")
"""The end of the patience of a message that waits for as long as it takes."""


class Outgoing:
    """A message on its way, and the future of its sender.

    Attributes:
        expires: when it is worthless, in seconds of `time.monotonic`.
        gives_up: when it has waited for long enough to be handed over.
        mended: its queue was bound or declared again for it.
        refused_since: when RabbitMQ first did not take it, or None.
        delay: seconds before it is published again the next time that RabbitMQ does not take it.
        refusal: what its sender is told if RabbitMQ does not take it in time.
    """

    __slots__ = (
        "address",
        "delay",
        "expires",
        "gives_up",
        "mandatory",
        "mended",
        "message",
        "refusal",
        "refused_since",
        "sent",
    )

    def __init__(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        self.address = address
        self.message = message
        self.mandatory = mandatory
        self.sent = sent
        now = time.monotonic()
        self.expires = FOREVER if message.ttl is None else now + message.ttl
        self.gives_up = self.expires if message.wait is None else now + message.wait
        self.mended = False
        self.refused_since: float | None = None
        self.delay = HOLD_FIRST
        self.refusal: MessagingException | None = None
