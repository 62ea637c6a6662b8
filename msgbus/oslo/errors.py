"""The errors of msgbus, as those that users of oslo.messaging expect."""

from __future__ import annotations

from typing import Any

import oslo_messaging
from oslo_messaging._drivers import base

import msgbus


def translated(error: msgbus.MessagingException, target: Any = None, *, timed_out: bool = False) -> Exception:
    """The error of oslo.messaging for one of msgbus.

    Args:
        error: of msgbus.
        target: of oslo.messaging, where the message was sent to; None if nothing was sent.
        timed_out: the caller's time is over.
    """
    text = str(error)
    if isinstance(error, msgbus.MessagingTimeout):
        return oslo_messaging.MessagingTimeout(text)
    if isinstance(error, msgbus.InvalidTarget):
        return oslo_messaging.InvalidTarget(text, target)
    if isinstance(error, msgbus.MessageDeliveryFailure) and timed_out:
        return oslo_messaging.MessagingTimeout(text)
    if isinstance(error, msgbus.MessageUndeliverable):
        topic = target and (f"{target.topic}.{target.server}" if target.server else target.topic)
        return oslo_messaging.MessageUndeliverable(error, target and target.exchange, topic, text)
    if isinstance(error, msgbus.MessageDeliveryFailure):
        return oslo_messaging.MessageDeliveryFailure(text)
    return base.TransportDriverError(text)
