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


def translated(error: MessagingException, target: Any, exchange: str, *, timed_out: bool = False) -> Exception:
    """The error of oslo.messaging for one of msgbus.

    Args:
        error: of msgbus.
        target: of oslo.messaging, where the message was sent to.
        exchange: of that target, or the default one.
        timed_out: the caller's time is over.
    """
    text = str(error)
    translation: Exception
    if isinstance(error, MessagingTimeout) or (isinstance(error, MessageDeliveryFailure) and timed_out):
        translation = oslo_messaging.MessagingTimeout(text)
    elif isinstance(error, InvalidTarget):
        translation = oslo_messaging.InvalidTarget(text, target)
    elif isinstance(error, MessageUndeliverable):
        topic = f"{target.topic}.{target.server}" if target.server else target.topic
        translation = oslo_messaging.MessageUndeliverable(error, exchange, topic, text)
    elif isinstance(error, MessageDeliveryFailure):
        translation = oslo_messaging.MessageDeliveryFailure(text)
    else:
        translation = base.TransportDriverError(text)
    return translation
