"""The drivers messaging and messagingv2: notifications as messages, to the topics of their level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from msgbus.drivers.base import Address
from msgbus.exceptions import ConfigurationError
from msgbus.notify.driver import NotificationDriver
from msgbus.notify.sending import send_notification
from msgbus.target import Target

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.base_transport import BaseTransport


def raise_all(errors: Sequence[Exception]) -> None:
    """Raise why a notification was not sent to some of its topics, if there were any errors."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("a notification was not sent to several topics", errors)


class MessagingDriver(NotificationDriver):
    """The driver ``messaging``: JSON without an envelope, which the oldest listeners read."""

    enveloped: ClassVar[bool] = False

    def __init__(
        self, conf: cfg.ConfigOpts, topics: Sequence[str], transport: BaseTransport, interceptors: Sequence[Any] = ()
    ) -> None:
        """See `NotificationDriver`.

        Raises:
            ConfigurationError: there is no topic, so that nothing would ever be sent.
        """
        super().__init__(conf, topics, transport, interceptors)
        if not topics:
            raise ConfigurationError(
                "the notifier has no topic to send to: name one in its argument topics, or in the option topics of "
                "[oslo_messaging_notifications]. To send no notifications, use the driver noop"
            )

    def addresses(self, priority: str) -> Sequence[Address]:
        """Where a notification of a level goes.

        Raises:
            InvalidTarget: a topic is too long, or otherwise invalid.
        """
        return [self.transport.address(Target(topic=f"{topic}.{priority}")) for topic in self.topics]

    def notify(self, ctxt: dict[str, Any], message: dict[str, Any], priority: str, retry: int) -> None:
        """See `NotificationDriver.notify`. All topics are tried, whatever fails."""
        transport: Any = self.transport
        errors: list[Exception] = []
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
            except Exception as exc:  # An interceptor may raise anything.
                errors.append(exc)
        raise_all(errors)


class MessagingV2Driver(MessagingDriver):
    """The driver ``messagingv2``: JSON in oslo.messaging's envelope, as requests are sent."""

    enveloped = True
