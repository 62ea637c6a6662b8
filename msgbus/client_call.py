"""ClientCall: a request that this side has sent. ThreadCall: one for whose outcome a thread waits."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial

from msgbus.base_transport import INSPECT_TIMEOUT, BaseTransport
from msgbus.drivers.base import Address, Capability, Message, QueueInfo, Sent
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_repeat
from msgbus.exceptions import CallCancelled, MessagingException, MessagingTimeout
from msgbus.foreign import get_logger
from msgbus.message import Control
from msgbus.pending import Pending, PendingCall, nobody
from msgbus.sending import send_control
from msgbus.transport import Transport

LOG = get_logger(__name__)

SAID_AFTER = 2.0
"""Seconds until a server's word that it runs a call has arrived in any case. (It says so after `STARTED_AFTER`.)"""


class ClientCall:
    """Sends the request of a call, a stream or a ping, and repeats it where that is allowed. It does not wait.

    `pending` holds what has arrived and decides what to do next; the clock and the sending are here. Its `wake` is set
    by whoever waits.

    Attributes:
        transport: where the request goes.
        pending: what is known of it.
        lost_answer: what a timeout says of a connection that was lost, if the message system keeps no answers.
    """

    __slots__ = ("_content_type", "_fallback", "pending", "transport")

    lost_answer = (
        "the connection of this process was lost meanwhile, and the answer may have been lost with it, which does not "
        "happen under delivery='at_least_once'"
    )

    def __init__(self, transport: BaseTransport, pending: Pending, content_type: str, fallback: Address | None) -> None:
        """`fallback` is where the request goes if nobody is at its address; see `BaseTransport.send`."""
        self.transport = transport
        self.pending = pending
        self._content_type = content_type
        self._fallback = fallback

    def send(self, message: Message) -> None:
        """Send the request, and expect replies. `close` has to follow in any case.

        Raises:
            CallCancelled: the transport is closed.
        """
        pending, transport = self.pending, self.transport
        self._expect_replies()
        mandatory = pending.address.kind != "fanout"
        if not pending.repeatable:
            sent = transport.send(pending.address, message, mandatory=mandatory, fallback=self._fallback)
            sent.add_done_callback(self._on_sent)
            return
        pending.request = message
        transport.watch_connection()
        transport.send(
            pending.address,
            message,
            mandatory=mandatory,
            until=pending.deadline,
            pending=pending,
            fallback=self._fallback,
            on_outcome=self._on_outcome,
        )

    def _expect_replies(self) -> None:
        pending, transport = self.pending, self.transport
        transport.router.add(pending)
        if transport.closed:  # Checked last: if it is closed after this, it finds the call in the router.
            transport.router.discard(pending)
            raise CallCancelled(f"{pending.describe}: {transport.closed_reason}")

    def _on_sent(self, sent: Future[Sent]) -> None:
        error = sent.exception()
        if error is None:
            self.pending.sent = True  # When that was matters only to a request that may be repeated.
        else:
            self._on_outcome(error)

    def _on_outcome(self, error: BaseException | None) -> None:
        if error is not None:
            error = self.transport.about(self.pending.describe, error)
        self.pending.on_sent(error, Loop.now())

    def check(self) -> Exception | None:
        """Do what is due for a call that still waits. Returns the reason if there is nothing more to wait for."""
        pending, now, up_since = self.pending, Loop.now(), self.transport.driver.up_since
        while pending.orphans:
            self._cancel(pending.orphans.pop())
        pending.update(now, up_since)
        error = pending.check(now)
        if error is None:
            repeats = pending.needs_repeat(now, up_since, self.transport.repeat_after)
            pending.on_checked(now, repeats)
            if repeats:
                self._send_again(now)
        return error

    def _send_again(self, now: float) -> None:
        """Send the request once more: its first copy, or the answer, seems to be lost."""
        pending, message = self.pending, self.pending.request
        if message is None:
            return
        LOG.info("%s is sent again: nothing was heard from a server", pending.describe)
        left = pending.deadline - now
        body = encode_repeat(message.body, message.content_type, left)
        self.transport.send(
            pending.address,
            Message(body, message.content_type, message.id, left, message.durable),
            mandatory=True,
            until=pending.deadline,
            retry_undeliverable=pending.deadline,
            pending=pending,
            fallback=self._fallback,
            on_outcome=self._on_repeated,
        )

    def _on_repeated(self, error: BaseException | None) -> None:
        self.pending.on_repeated(error, Loop.now())

    def forget(self) -> None:
        """Expect no more replies. Late replies are dropped."""
        self.transport.router.discard(self.pending)
        self.pending.wake = nobody  # A stream refers to it and back: so memory is freed at once.

    def close(self) -> None:
        """Expect no more replies, and cancel the call on each server that still runs it."""
        pending = self.pending
        self.transport.router.discard(pending)
        if pending.servers:
            self._cancel_unanswered()
        if pending.ready or (pending.servers and not pending.for_many):
            return
        if pending.send_error is None and not self.transport.closed:
            self._cancel_later()

    def _cancel_later(self) -> None:
        """A server may have begun the call, and not have said so yet, or may still begin it."""
        pending, router = self.pending, self.transport.router
        pending.request = None  # It is not sent again, and may be large.
        router.abandon_later(pending.id, self._cancel)
        left = pending.deadline - Loop.now()
        self.transport.loop.call_later(max(left, 0.0) + SAID_AFTER, router.forget, pending.id)

    def _cancel_unanswered(self) -> None:
        pending = self.pending
        answer = pending.answer if isinstance(pending, PendingCall) else None
        if len(pending.servers) > 1 or (pending.servers and answer is None):
            answered_by = None if answer is None else answer.server
            for inbox, server in list(pending.servers.items()):
                if answered_by is None or server.name != answered_by:
                    self._cancel(inbox)

    def _cancel(self, inbox: str) -> None:
        try:
            self.send_control(inbox, Control(self.pending.id, "cancel"))
        except MessagingException as exc:
            LOG.debug("%s: it could not be cancelled at inbox %s: %s", self.pending.describe, inbox, exc)

    def send_control(self, inbox: str, control: Control) -> None:
        """Send a control frame to a server."""
        send_control(self.transport, inbox, control, self._content_type)

    def explain_timeout(self, found: QueueInfo | None) -> MessagingTimeout:
        """The error of a call that has timed out, with what is known: an operator has nothing else to go by.

        Args:
            found: what is known of the address, if no server has said that it runs the call.
        """
        pending, driver = self.pending, self.transport.driver
        missing = pending.missing if Loop.now() >= pending.deadline else pending.silence
        known = [f"{pending.describe}: {missing} over {driver.state}"]
        known.append("the message system has taken the request" if pending.sent else "it is not known to be delivered")
        for server in list(pending.servers.values()):
            silent = Loop.now() - server.last_sign
            known.append(f"server {server.name!r} runs it, last sign of life {silent:.1f} s ago")
        if found is not None:
            plural = "" if found.messages == 1 else "s"
            waiting = "" if found.messages is None else f", {found.messages} message{plural} waiting"
            known.append(f"no server said that it began; consumers there: {found.consumers}{waiting}")
        keeps = Capability.INBOX_STORAGE in driver.capabilities
        up_since = driver.up_since
        if not keeps and pending.request is None and up_since is not None and up_since > pending.began:
            known.append(self.lost_answer)
        return MessagingTimeout("; ".join(known))


class ThreadCall(ClientCall):
    """A call whose caller's thread waits for the outcome, and drives the transport's loop meanwhile."""

    __slots__ = ("_drives", "_lock")

    transport: Transport

    def __init__(self, transport: Transport, pending: Pending, content_type: str, fallback: Address | None) -> None:
        ClientCall.__init__(self, transport, pending, content_type, fallback)
        self._lock = threading.Lock()
        self._lock.acquire()
        self._drives = False
        pending.wake = partial(transport.loop.wake, self._lock)

    def send(self, message: Message) -> None:
        """As `ClientCall.send`.

        If nobody drives the transport's loop, this thread does from now on; so `wait`, `close` or `stop_driving` has to
        follow soon.
        """
        self._drives = self.transport.loop.take_turn()
        ClientCall.send(self, message)

    def wait(self, *, explain: bool = True) -> None:
        """Wait until `pending` is ready.

        Args:
            explain: find out what is known of the call for the text of a timeout, which may take `INSPECT_TIMEOUT`.

        Raises:
            MessagingException: why it will never be ready.
        """
        pending = self.pending
        while not pending.ready:
            self.transport.loop.wait(self._lock, pending.next_check())
            if not pending.ready:
                error = self.check()
                if explain and type(error) is MessagingTimeout:
                    found = None if pending.servers else self.transport.inspect(pending.address, INSPECT_TIMEOUT)
                    error = self.explain_timeout(found)
                if error is not None:
                    try:
                        raise error.with_traceback(None)  # Others may get the same error, without our frames.
                    finally:
                        del error  # Its traceback refers to this frame.

    def stop_driving(self) -> None:
        """Let others drive the loop."""
        if self._drives:
            self._drives = False
            self.transport.loop.give_turn()

    def close(self) -> None:
        """As `ClientCall.close`, and let others drive the loop."""
        try:
            ClientCall.close(self)
        finally:
            if self._drives:
                self.stop_driving()
