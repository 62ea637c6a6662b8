"""Notifications: their levels, what is sent, and reading what came."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, NamedTuple

from msgbus.drivers.base import Delivery
from msgbus.encoding import context_of, take_metadata, with_context
from msgbus.exceptions import SerializationError
from msgbus.message import MAX_NAME, Hints, Request
from msgbus.payload import decode

PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")
"""The levels, in the form in which they end a topic; in a message they are in capital letters."""


def make_message(publisher_id: str | None, event_type: str, payload: Any, priority: str) -> dict[str, Any]:
    """What is sent: the keys are those of oslo.messaging.

    Raises:
        TypeError: the event's type is not a string.
    """
    if not isinstance(event_type, str):
        raise TypeError(
            f"a notification is (ctxt, event_type, payload), and its event_type a string, not {event_type!r}"
        )
    return {
        "message_id": str(uuid.uuid4()),
        "publisher_id": publisher_id,
        "event_type": event_type,
        "priority": priority.upper(),
        "payload": payload,
        "timestamp": str(datetime.now(UTC).replace(tzinfo=None)),
    }


class Notification(NamedTuple):
    """A notification for endpoints.

    Attributes:
        priority: one of `PRIORITIES`.
        ctxt: the sender's context, as the serializer has made it.
        publisher_id: who has sent it; None if the sender does not say.
        event_type: what has happened.
        payload: the rest, as the serializer has made it.
        metadata: its ``message_id`` and ``timestamp``.
    """

    priority: str
    ctxt: Any
    publisher_id: str | None
    event_type: str
    payload: Any
    metadata: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """It, as endpoints of a batch listener get it."""
        return {
            "ctxt": self.ctxt,
            "publisher_id": self.publisher_id,
            "event_type": self.event_type,
            "payload": self.payload,
            "metadata": self.metadata,
        }


def read_notification(delivery: Delivery) -> Request:
    """Read a delivery. The message is in the request's arguments, the context in its context.

    Raises:
        SerializationError: it is not a notification. The text says what is wrong with it.
    """
    payload = decode(delivery.message.body, delivery.message.content_type)
    context, metadata = context_of(payload), take_metadata(payload)
    unique_id = payload.pop("_unique_id", None)
    if not isinstance(unique_id, str) or len(unique_id) > MAX_NAME:
        unique_id = ""  # Then it is not compared with others.
    message = with_context(payload, {})
    hints = Hints(metadata=metadata) if metadata else None
    check_message(message)
    return Request("", message, unique_id, context=context, hints=hints)


def check_message(message: dict[str, Any]) -> None:
    """Check that it is a notification, and not just any dict.

    Raises:
        SerializationError: the text says what is wrong with it.
    """
    priority, event_type = message.get("priority"), message.get("event_type")
    if not isinstance(priority, str) or priority.lower() not in PRIORITIES:
        raise SerializationError(f"its priority is {priority!r}, and has to be one of {', '.join(PRIORITIES)}")
    if not isinstance(event_type, str):
        raise SerializationError(f"its event_type is {event_type!r}, and has to be a string")
    publisher_id = message.get("publisher_id")
    if not isinstance(publisher_id, str | None):
        raise SerializationError(f"its publisher_id is {publisher_id!r}, and has to be a string")


def notification_of(message: dict[str, Any], ctxt: Any, payload: Any) -> Notification:
    """A message that was checked, with what the serializer has made of its context and payload."""
    metadata = {"message_id": message.get("message_id"), "timestamp": message.get("timestamp")}
    return Notification(
        message["priority"].lower(), ctxt, message.get("publisher_id"), message["event_type"], payload, metadata
    )
