"""notify: sends a notification, which is stored until somebody reads it."""

from __future__ import annotations

from typing import Any

from msgbus.exceptions import InvalidTarget, SerializationError
from msgbus.notify.sending import send_notification
from msgbus.rpc import binding
from msgbus.serializer import NoOpSerializer
from msgbus.target import Target


def notify(context: Any, topic: str, msg: dict[str, Any]) -> None:
    """Send a notification, and return when the message system has taken it. It is repeated until then.

    If nobody has ever listened to the topic, a queue is made that keeps the notifications for the first reader of the
    topic itself: a consumer, or a pool with the topic's name. Other pools get what is sent after they were joined.
    Notifications that nobody ever reads are kept too: see the option ``queue_expires``.

    Args:
        context: as for `call`.
        topic: usually ``BASE.PRIORITY``, such as ``notifications.info``. No part of it is taken for a server's name.
        msg: any dict.

    Raises:
        MessageUndeliverable: nobody listens, and the message system cannot store it (no `Capability.STORAGE`).
        InvalidTarget: the topic is invalid.
        SerializationError: the message is not a dict, or holds a value that cannot be sent.
        MessagingException: as for `cast`.
    """
    if not isinstance(msg, dict):
        raise SerializationError(f"a notification is a dict, not {type(msg).__name__}")
    transport = binding.transport()
    if not isinstance(topic, str):
        raise InvalidTarget(f"the topic must be a string, not {type(topic).__name__}", topic)
    send_notification(
        transport,
        transport.address(Target(topic=topic)),
        NoOpSerializer().serialize_context(context),
        msg,
        retry=-1,
        enveloped=True,
        interceptors=binding.client_interceptors(),
    )
