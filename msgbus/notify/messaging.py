"""The drivers messaging and messagingv2: notifications as messages, to the topics of their level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from msgbus.drivers.base import Address
from msgbus.exceptions import MessagingException
from msgbus.notify.driver import NotificationDriver
from msgbus.notify.sending import send_notification
from msgbus.target import Target


class MessagingDriver(NotificationDriver):
    """The driver ``messaging``: JSON without an envelope, which the oldest listeners read."""

    enveloped: ClassVar[bool] = False

    def addresses(self, priority: str) -> Sequence[Address]:
        """Where a notification of a level goes.

        Raises:
            InvalidTarget: a topic is too long, or otherwise invalid.
        """
        return [self.transport.address(Target(topic=f"{topic}.{priority}")) for topic in self.topics]

    def notify(self, ctxt: dict[str, Any], message: dict[str, Any], priority: str, retry: int) -> None:
        """See `NotificationDriver.notify`. All topics are tried; then the first error is raised."""
        transport: Any = self.transport
        errors = []
        for address in self.addresses(priority):
            try:
                send_notification(
                    transport,
                    address,
                    ctxt,
                    message,
                    retry=retry,
                    enveloped=self.enveloped,
                    interceptors=self.interceptors,
                )
            except MessagingException as exc:
                errors.append(exc)
        if errors:
            raise errors[0]


class MessagingV2Driver(MessagingDriver):
    """The driver ``messagingv2``: JSON in oslo.messaging's envelope, as requests are sent."""

    enveloped = True
