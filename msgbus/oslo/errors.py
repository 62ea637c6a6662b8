"""The errors of msgbus, as those that users of oslo.messaging expect."""

from __future__ import annotations

from typing import Any

import oslo_messaging
from oslo_messaging._drivers import base

from msgbus import (
    InvalidTarget,
    MessageDeliveryFailure,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
)


def translated(error: MessagingException, target: Any, *, timed_out: bool = False) -> Exception:
    """The error of oslo.messaging for one of msgbus.

    Args:
        error: of msgbus.
        target: of oslo.messaging, where the message was sent to.
        timed_out: the caller's time is over.
    """
    text = str(error)
    if isinstance(error, MessagingTimeout) or (isinstance(error, MessageDeliveryFailure) and timed_out):
        return oslo_messaging.MessagingTimeout(text)
    if isinstance(error, InvalidTarget):
        return oslo_messaging.InvalidTarget(text, target)
    if isinstance(error, MessageUndeliverable):
        topic = f"{target.topic}.{target.server}" if target.server else target.topic
        return oslo_messaging.MessageUndeliverable(error, target.exchange, topic, text)
    if isinstance(error, MessageDeliveryFailure):
        return oslo_messaging.MessageDeliveryFailure(text)
    return base.TransportDriverError(text)
