"""notify: sends a notification, which is stored until somebody reads it."""

from __future__ import annotations

from typing import Any

from msgbus.drivers.base import Address, Capability, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_notification
from msgbus.exceptions import InvalidTarget, MessageDeliveryFailure, MessageUndeliverable, SerializationError
from msgbus.interceptors import Deadline, InterceptedRequest, chain, checked_metadata
from msgbus.message import CONTENT_TYPES, new_id
from msgbus.rpc import binding
from msgbus.serializer import NoOpSerializer
from msgbus.target import Target
from msgbus.transport import Transport


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
    target = Target(topic=topic)
    context = NoOpSerializer().serialize_context(context)
    address = transport.address(target)
    deadline = Loop.now() + transport.option("rpc_response_timeout")
    interceptors = binding.client_interceptors()
    if not interceptors:
        _notify(transport, address, context, msg, None, deadline)
        return

    def proceed(request: InterceptedRequest) -> None:
        metadata, changed = checked_metadata(request.metadata), NoOpSerializer().serialize_context(request.context)
        _notify(transport, address, changed, dict(request.args), metadata, deadline)

    request = InterceptedRequest("notification", "", target, context, dict(msg), {}, Deadline(deadline))
    chain(interceptors, proceed)(request)


def _notify(
    transport: Transport,
    address: Address,
    context: dict[str, Any],
    msg: dict[str, Any],
    metadata: dict[str, str] | None,
    deadline: float,
) -> None:
    content_type = CONTENT_TYPES[transport.option("rpc_codec")]
    unique_id = new_id()
    body = encode_notification(msg, context, unique_id, content_type, lossy=transport.lossy, metadata=metadata)
    with transport.slot(deadline):
        message = Message(body, content_type, unique_id, None, True, deadline - Loop.now())
        try:
            _send(transport, address, message, deadline)
        except MessageDeliveryFailure as exc:
            nobody = isinstance(exc.__cause__ or exc, MessageUndeliverable)
            if not nobody or Capability.STORAGE not in transport.driver.capabilities:
                raise
            _send(transport, address._replace(kind="stored"), message, deadline)


def _send(transport: Transport, address: Address, message: Message, deadline: float) -> None:
    stores = Capability.STORAGE in transport.driver.capabilities
    # If it can be stored, there is no need to wait for a listener, even after a try with an unknown outcome.
    transport.send_and_wait(
        address,
        message,
        deadline,
        what="a notification to",
        mandatory=True,
        repeat=True,
        retry_undeliverable=0.0 if stores else None,
    )
