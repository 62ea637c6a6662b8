"""notify: a notification is kept for whoever will read it."""

from __future__ import annotations

import time
from typing import Any

from msgbus.client import acquire, wait_until_sent
from msgbus.drivers.base import Address, Capability, Message
from msgbus.exceptions import InvalidTarget, MessageDeliveryFailure, MessageUndeliverable, SerializationError
from msgbus.message import CONTENT_TYPES, encode_notification, new_id
from msgbus.rpc import binding
from msgbus.serializer import NoOpSerializer
from msgbus.target import Target
from msgbus.transport import Transport


def notify(context: Any, topic: str, msg: dict[str, Any]) -> None:
    """Send a notification, and return when the message system has taken it. It is repeated until then.

    Where nobody has ever listened to the topic, the message system is told to keep what is sent there, for the first
    who reads from the topic itself: a consumer, or a pool that is called as the topic. Other pools get what is sent
    after they were joined. What nobody ever reads is kept too: see the option ``queue_expires``.

    Args:
        context: as for `call`.
        topic: usually ``BASE.PRIORITY``, such as ``notifications.info``. It is taken as it is: no part names a server.
        msg: any dict.

    Raises:
        MessageUndeliverable: nobody listens, and the message system cannot keep it (no `Capability.STORE`).
        InvalidTarget: the topic is none.
        SerializationError: the message is no dict, or holds what cannot travel.
        MessagingException: as for `cast`.
    """
    if not isinstance(msg, dict):
        raise SerializationError(f"a notification is a dict, not {type(msg).__name__}")
    transport = binding.transport()
    if not isinstance(topic, str):
        raise InvalidTarget(f"the topic must be a string, not {type(topic).__name__}", topic)
    address = transport.address(Target(topic=topic))
    content_type = CONTENT_TYPES[transport.option("rpc_codec")]
    unique_id = new_id()
    body = encode_notification(
        msg, NoOpSerializer().serialize_context(context), unique_id, content_type, lossy=transport.lossy
    )
    deadline = time.monotonic() + transport.option("rpc_response_timeout")
    acquire(transport, deadline)
    try:
        message = Message(body, content_type, unique_id, None, True, deadline - time.monotonic())
        try:
            _send(transport, address, message, deadline)
        except MessageDeliveryFailure as exc:
            nobody = isinstance(exc.__cause__ or exc, MessageUndeliverable)
            if not nobody or Capability.STORE not in transport.driver.capabilities:
                raise
            _send(transport, address._replace(kind="stored"), message, deadline)
    finally:
        transport.window.release()


def _send(transport: Transport, address: Address, message: Message, deadline: float) -> None:
    stores = Capability.STORE in transport.driver.capabilities
    # Where it can be stored nobody is waited for, even after a try of which it is not known whether it arrived.
    sent = transport.send_repeatedly(
        deadline, address, message, mandatory=True, retry_undeliverable=0.0 if stores else None
    )
    wait_until_sent(sent, deadline, f"a notification to {address}", transport)
