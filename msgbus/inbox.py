"""ProcessInbox: where replies to this process's calls come in, and control frames for the calls that it serves."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from typing import Protocol

from msgbus.deadline import Waits, wait_for
from msgbus.drivers.base import Delivery, Driver, Inbox
from msgbus.encoding import call_ids_in, decode_inbox_frame
from msgbus.exceptions import MessagingException, SerializationError
from msgbus.foreign import get_logger
from msgbus.message import MAX_NAME, Control, Reply
from msgbus.patched import check_unpatched
from msgbus.replies import ReplyRouter
from msgbus.sending import Sender, send_control

LOG = get_logger(__name__)


class ControlHandler(Protocol):
    """A call that a server runs: it takes the client's control frames."""

    def on_control(self, control: Control) -> None:
        """Handle a control frame. It must not block."""


class ProcessInbox:
    """The one inbox of a transport, which is opened when it is first needed. Thread-safe.

    It refers to its transport weakly. The driver, which has threads, refers to the inbox: so a transport that nobody
    else refers to is collected, and its driver closed.

    Attributes:
        name: travels in each request; None until the inbox is open.
    """

    def __init__(
        self,
        transport: Sender,
        driver: Driver,
        router: ReplyRouter,
        server_calls: Mapping[str, ControlHandler],
        further_calls: Mapping[tuple[str, str], ControlHandler],
    ) -> None:
        """Pass replies to `router`, and control frames to the calls of their id.

        Those are in `server_calls`, by call id, and in `further_calls`, by call id and server.
        """
        self.name: str | None = None
        self._transport = weakref.ref(transport)
        self._driver = driver
        self._router = router
        self._server_calls = server_calls
        self._further_calls = further_calls
        self._inbox: Inbox | None = None
        self._opening = threading.Lock()

    def open(self, waits: Waits, deadline: float) -> str:
        """Open it, and return its name, waiting by `waits`; see `Transport.inbox`.

        Raises:
            SerializationError: the driver has given it a name that is too long to travel.
        """
        inbox = self.begin()
        try:
            wait_for(waits, inbox.ready, deadline, "cannot reach", self._driver)
        except MessagingException:
            self.on_failed(inbox)
            raise
        return self.on_open(inbox)

    def begin(self) -> Inbox:
        """Begin to open it, unless that was done. `on_open` or `on_failed` has to follow."""
        inbox = self._inbox
        if inbox is None:
            check_unpatched()
            with self._opening:
                inbox = self._inbox
                if inbox is None:
                    inbox = self._inbox = self._driver.open_inbox(self._on_delivery)
        return inbox

    def on_open(self, inbox: Inbox) -> str:
        """It is open. Returns its name.

        Raises:
            SerializationError: the driver has given it a name that is too long to travel.
        """
        name = inbox.address.name
        if len(name) > MAX_NAME:  # Servers would drop the requests that name it.
            raise SerializationError(
                f"the name of the inbox has {len(name)} characters, and may have {MAX_NAME}: {name[:40]}…"
            )
        self.name = name
        return name

    def on_failed(self, inbox: Inbox) -> None:
        """It was not opened in time, or was refused. In that case the next try may succeed."""
        if not inbox.ready.done() or inbox.ready.exception() is None:  # It may have been opened meanwhile, for others.
            return
        with self._opening:
            if self._inbox is not inbox:  # Another caller was first, and may have begun to open the next one.
                return
            self._inbox = None
        inbox.close()

    def _on_delivery(self, delivery: Delivery) -> None:
        transport, message = self._transport(), delivery.message
        if transport is None:
            return
        try:
            frame = decode_inbox_frame(message.body, message.content_type)
        except SerializationError as exc:
            self._end_call_of(delivery, exc, transport)
            return
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("received %s: %s for %s", message.id, frame.kind, frame.call_id)
        if isinstance(frame, Reply):
            frame.redelivered = delivery.redelivered
            if frame.confirm is not None:  # Even if no call waits any more: else it is sent again.
                # Before the caller gets its answer, after which the program may end.
                send_control(transport, frame.confirm, Control(frame.call_id, "confirm"), message.content_type)
            self._router.route(frame, delivery.arrived)
        else:
            self._control(frame)

    def _control(self, frame: Control) -> None:
        first = self._server_calls.get(frame.call_id)
        calls = [] if first is None else [first]
        if self._further_calls:
            calls += [call for (call_id, _), call in list(self._further_calls.items()) if call_id == frame.call_id]
        for call in calls:
            call.on_control(frame)
        if not calls:
            LOG.debug("a control frame (%s) for call %s, which is not running here", frame.kind, frame.call_id)

    def _end_call_of(self, delivery: Delivery, error: SerializationError, transport: Sender) -> None:
        """End the call that an unreadable frame belongs to: no readable one will follow."""
        message = delivery.message
        ids = call_ids_in(message.body)
        calls = [pending for pending in self._router.waiting() if pending.id in ids]
        if len(calls) != 1:  # With several ids, all but one are only quoted in the frame.
            LOG.warning("an unreadable message to the inbox was dropped: %s", error)
            return
        pending = calls[0]
        text = f"{pending.describe}: the server has begun it, and its reply {error}"
        LOG.warning("%s", text)
        pending.on_unreadable(SerializationError(text), delivery.arrived)
        if pending.server_inbox is not None:
            send_control(transport, pending.server_inbox, Control(pending.id, "cancel"), message.content_type)
