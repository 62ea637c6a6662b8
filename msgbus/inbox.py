"""ProcessInbox: where replies to this process's calls come in, and control frames for the calls that it serves."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING

from msgbus.deadline import wait_for
from msgbus.drivers.base import Delivery, Inbox, Message
from msgbus.encoding import call_ids_in, decode_inbox_frame
from msgbus.exceptions import CallCancelled, MessagingException, SerializationError
from msgbus.foreign import get_logger
from msgbus.message import Control, Reply
from msgbus.patched import check_unpatched

if TYPE_CHECKING:
    from msgbus.transport import Transport

LOG = get_logger(__name__)


class ProcessInbox:
    """The one inbox of a transport, which is opened when it is first needed. Thread-safe.

    It refers to its transport weakly. The driver, which has threads, refers to the inbox: so a transport that nobody
    else refers to is collected, and its driver closed.

    Attributes:
        name: travels in each request; None until the inbox is open.
    """

    def __init__(self, transport: Transport) -> None:
        self.name: str | None = None
        self._transport = weakref.ref(transport)
        self._inbox: Inbox | None = None
        self._opening = threading.Lock()

    def open(self, transport: Transport, deadline: float) -> str:
        """Open it, and return its name; see `Transport.inbox`."""
        inbox = self._inbox
        if inbox is None:
            if transport.closed:
                raise CallCancelled(f"the transport to {transport.url} is closed")
            check_unpatched()
            with self._opening:
                if self._inbox is None:
                    self._inbox = transport.driver.open_inbox(self._on_delivery)
                inbox = self._inbox
        try:
            wait_for(inbox.ready, deadline, "cannot reach", transport.driver)
        except MessagingException:
            if inbox.ready.done():  # It was refused; the reason may have gone away by the next time.
                self._inbox = None
                inbox.close()
            raise
        self.name = inbox.address.name
        return self.name

    def _on_delivery(self, delivery: Delivery) -> None:
        transport, message = self._transport(), delivery.message
        if transport is None:
            return
        try:
            frame = decode_inbox_frame(message.body, message.content_type)
        except SerializationError as exc:
            _end_call_of(message, exc, transport)
            return
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("received %s: %s for %s", message.id, frame.kind, frame.call_id)
        if isinstance(frame, Reply):
            if frame.confirm is not None:  # Even if nobody waits any more: it would be sent again.
                # Before the caller gets its answer: then the program may end.
                transport.send_control(frame.confirm, Control(frame.call_id, "confirm"), message.content_type)
            transport.router.route(frame, time.monotonic())
        elif (call := transport.server_calls.get(frame.call_id)) is not None:
            call.on_control(frame)
        else:
            LOG.debug("a control frame (%s) for call %s, which is not running here", frame.kind, frame.call_id)


def _end_call_of(message: Message, error: SerializationError, transport: Transport) -> None:
    """End the call to which a frame that cannot be read belongs: no better one will come."""
    ids = call_ids_in(message.body)
    calls = [pending for pending in transport.router.waiting() if pending.id in ids]
    if len(calls) != 1:  # Of several ids, all but one are mentioned in the answer of a server to somebody else.
        LOG.warning("an unreadable message to the inbox was dropped: %s", error)
        return
    pending = calls[0]
    text = f"{pending.describe}: the server has begun it, and what it sent {error}"
    LOG.warning("%s", text)
    pending.send_error = SerializationError(text)
    pending.wake()
    if pending.server_inbox is not None:
        transport.send_control(pending.server_inbox, Control(pending.id, "cancel"), message.content_type)
