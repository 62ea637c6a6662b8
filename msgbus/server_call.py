"""ServerCall: one request that a server runs, with its delivery, its state, and all that is sent to its client."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from msgbus import forking
from msgbus.closing import end_child
from msgbus.current import RunningRequest
from msgbus.drivers.base import Address, Delivery, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_reply
from msgbus.exceptions import MessageTooLarge, SerializationError
from msgbus.failures import serialize_failure
from msgbus.foreign import get_logger
from msgbus.message import KEEPALIVE, Control, Reply, Request
from msgbus.sending import OnOutcome
from msgbus.stream_sender import Event, StreamSender

if TYPE_CHECKING:
    from msgbus.base_transport import BaseTransport

LOG = get_logger(__name__)

ID_LENGTH = 32
"""Characters of the ids of msgbus and of oslo.messaging."""
STARTED_AFTER = 0.2
"""Seconds until the client of a running call is notified of that: most calls are done by then."""
CONFIRMED_AFTER = 1.0
"""Seconds to wait for the confirmation of an answer before it is sent again; doubled each time."""

KNOWN_INBOXES = 1000
"""How many clients' addresses are kept."""

_NOBODY = Address("inbox")


@lru_cache(KNOWN_INBOXES)
def _inbox(name: str) -> Address:
    return Address("inbox", name=name)


class CallOwner(Protocol):
    """What runs calls: a `Processor`, or a part of it.

    Attributes:
        transport: where they came from.
        server: the server's name.
        grace: the option ``rpc_reply_grace``.
        forks: how often the process had forked when it was made.
    """

    transport: BaseTransport
    server: str
    grace: float
    forks: int

    def may_have(self, request: Request) -> bool:
        """Whether there is such a method, and it may be called."""

    def on_answered(self, call: ServerCall, error: BaseException | None) -> None:
        """The client has its answer or does not want it, or the answer could not be delivered because of `error`."""


class ServerCall(RunningRequest):
    """A request that a server runs. Thread-safe: the method's thread, the loop and the inbox use it.

    A cast is one too; nothing is sent for it.

    Attributes:
        owner: what runs it. Its `on_answered` is called once.
        transport: where it came from.
        address: of the client's inbox.
        is_call: a client waits for the answer.
        accepted: its delivery has been accepted.
        finished: its delivery and the duplicates were accepted or given back.
        duplicates: further deliveries of the same request, which wait for its outcome.
        failure: of a cast that raised, the reason and the traceback.
        began: when it was begun here last, in seconds of `Loop.now`.
        waits: of a cast: its method does not run now, since it is to be run again, or is given up.
        active: of a call: its method runs, and it sends keepalives.
        counted: its method has ended, and that is counted.
        controlled: control frames reach it.
        started: the client has been notified that the call runs.
        answered: the answer has begun to be sent.
        confirmed: the client has said that it has the answer, or does not want it.
        mates: of the notification for which a batch runs: all of that batch.
        interrupt: called, on any thread, when the client cancels the call; None where nothing can be interrupted.
    """

    # Most requests keep most of these defaults. Slots would have to be set for each, which saves nothing.
    accepted = finished = active = controlled = started = answered = confirmed = waits = counted = False
    duplicates: Sequence[Delivery] = ()
    mates: Sequence[ServerCall] = ()
    failure: tuple[str, Sequence[str]] = ("", ())
    interrupt: Callable[[], object] | None = None
    _frames = 0
    _stream: StreamSender | None = None
    _too_large = False
    _unconfirmed: Reply | None = None
    _sent_at: float | None = None  # when the unconfirmed answer was taken by the message system
    _resend_after = CONFIRMED_AFTER
    _resend_until = 0.0

    def __init__(
        self, owner: CallOwner, delivery: Delivery, request: Request, deadline: float | None, at_least_once: bool
    ) -> None:
        # Not by super().__init__, which costs twice as much.
        self.server = owner.server
        self.delivery = delivery
        self.request = request
        self.deadline = deadline
        self.at_least_once = at_least_once
        self.owner = owner
        self.transport = owner.transport
        reply_to, hints = request.reply_to, request.hints
        self.address = _NOBODY if reply_to is None else _inbox(reply_to)
        self.is_call = reply_to is not None and request.call_id is not None
        self._extended = hints is not None
        self._confirms = hints is not None and hints.confirms
        self.began = self._last_frame = Loop.now()
        self._reply_deadline = deadline  # That of the first item, while `deadline` may become that of a whole stream.

    @property
    def names_method(self) -> bool:
        """See `RunningRequest.names_method`."""
        return self.owner.may_have(self.request)

    @property
    def runs(self) -> bool:
        """Whether its method runs."""
        return not self.counted and (self.active if self.is_call else not (self.finished or self.waits))

    @property
    def is_unconfirmed(self) -> bool:
        """Whether there is an answer that the client has not confirmed."""
        return self._unconfirmed is not None

    def send(self, reply: Reply, on_outcome: OnOutcome | None = None) -> None:
        """Send a frame to the client.

        While this side's connection is down the frame waits until the client's deadline; while the client's is down,
        sending is retried for `rpc_reply_grace`.

        Raises:
            SerializationError: the result cannot be written.
        """
        owner = self.owner
        if owner.forks != forking.forks:  # In a forked child: the parent sends the answer.
            end_child(None)
        reply.extended = self._extended
        reply.server = self.server
        content_type = self.delivery.message.content_type
        body = encode_reply(reply, content_type, lossy=self.transport.lossy)
        now = self._last_frame = Loop.now()
        end = now + max(owner.grace, 1.0)  # An answer needs a moment in any case.
        if self._reply_deadline is not None and self._reply_deadline > end:
            end = self._reply_deadline
        # It begins with the call's id, so that a search of the log for that id finds the answers too. (Other peers' ids
        # may have any length, and message systems limit it.)
        self._frames += 1
        message_id = f"{reply.call_id[:ID_LENGTH]}.{self._frames}.{reply.kind}"
        self.transport.send(
            self.address,
            Message(body, content_type, message_id, end - now, self.at_least_once),
            mandatory=True,
            until=end,
            retry_undeliverable=now + owner.grace,
            on_outcome=on_outcome or self._on_signal_sent,
        )

    def _on_signal_sent(self, error: BaseException | None) -> None:
        """A keepalive or the like was sent. If it was lost, the next one makes up for it."""
        if error is not None:
            LOG.debug("a frame of call %s was lost: %s", self.request.call_id, error)

    def result(self, value: Any) -> None:
        """Answer with a value; if it cannot be written, with an error that says so."""
        try:
            self._answer(Reply(self.request.call_id or "", result=value, ending=True))
        except SerializationError as exc:
            LOG.error("the result of %r %s", self.request.method, exc)
            self.error(SerializationError(f"the result of {self.request.method!r} {exc}"))

    def error(self, exc: BaseException) -> None:
        """Answer with an exception."""
        text = serialize_failure(exc)
        if self._stream is not None:
            self._stream.end(text)
        else:
            self._answer(Reply(self.request.call_id or "", failure=text, ending=True))

    def _answer(self, reply: Reply) -> None:
        self.answered = True
        if self.cancelled:  # The client has stopped waiting, and may have ended.
            LOG.debug("the answer to call %s is not sent: its client has cancelled it", reply.call_id)
            self.owner.on_answered(self, None)
            return
        if self._confirms:
            reply.confirm = self.take_control()
            until = self._reply_deadline
            self._resend_until = Loop.now() + max(self.owner.grace, 1.0) if until is None else until
            self._unconfirmed = reply
        try:
            self.send(reply, self.on_answer_sent)
        except SerializationError:
            self._unconfirmed = None
            raise

    def on_answer_sent(self, error: BaseException | None) -> None:
        """The answer, or the last frame of the stream, was taken by the message system, or could not be sent."""
        if self.owner.forks != forking.forks:
            return  # The parent deals with it.
        if self._confirms and self._stream is None:
            if self._unconfirmed is None:
                return  # The confirmation came first.
            if error is None:
                self._sent_at = Loop.now()
                return
            self._unconfirmed = None
        if error is not None:
            LOG.warning(
                "the answer to %r (call %s) could not be delivered to %s: %s",
                self.request.method,
                self.request.call_id,
                self.address,
                error,
            )
        if isinstance(error, MessageTooLarge) and not self._too_large and self._stream is None:
            self._too_large = True
            self.error(MessageTooLarge(f"the answer to {self.request.method!r}: {error}"))
            return
        self.owner.on_answered(self, error)

    def _on_confirmed(self) -> None:
        if self._unconfirmed is not None:
            self._unconfirmed = None
            self.owner.on_answered(self, None)

    def _resend(self, reply: Reply, now: float) -> None:
        """Send an unconfirmed answer again if it is time: the client's inbox may have been lost with its connection."""
        call = f"the answer to {self.request.method!r} (call {self.request.call_id})"
        if now >= self._resend_until:
            LOG.warning("%s was never confirmed by %s", call, self.address)
            self._on_confirmed()
        elif self._sent_at is not None and now - self._sent_at >= self._resend_after:
            LOG.debug("%s was not confirmed and is sent again", call)
            self._sent_at = None
            self._resend_after = min(2 * self._resend_after, KEEPALIVE)
            self.send(reply, self.on_answer_sent)

    def decline(self) -> None:
        """Notify the client that the request is not run here, since it may have run before."""
        if self._extended:
            self.send(Reply(self.request.call_id or "", "declined"))

    def stream(self, items: Generator[Any, Any, Any]) -> None:
        """Send a generator's items, as many as the client has given credit for.

        Raises:
            Exception: what the generator raises; it has to be passed to `error`.
        """
        self._begin_stream().run(items)

    async def stream_async(self, items: AsyncGenerator[Any, None], event: Event) -> None:
        """As `stream`, for an asynchronous generator, on its event loop; `event` is what it waits with for credit."""
        await self._begin_stream().run_async(items, event)

    def _begin_stream(self) -> StreamSender:
        self.answered = True
        self._stream = stream = StreamSender(self)
        if self.cancelled:  # The cancel came before there was a stream.
            stream.on_control(Control(self.request.call_id or "", "cancel"))
        self.send_started()
        return stream

    def forget_stream(self) -> None:
        """The stream is over, and so is its generator. It refers to this: so memory is freed at once."""
        self._stream = None

    def send_started(self) -> None:
        """Notify the client that the request runs, and to which inbox control frames for it go."""
        if not self.started and self._extended:
            self.started = True
            inbox = self.take_control()
            if not self.active and not self.is_unconfirmed:  # Its method has just ended, on another thread.
                self.end_control()
                return
            self.send(Reply(self.request.call_id or "", "started", inbox=inbox))

    def take_control(self) -> str:
        """From now on control frames reach this call. Returns the inbox that the client is to send them to.

        A client does not know the inbox before: so most calls, which are answered at once, are never in the table.
        """
        self.controlled = True
        transport, call_id = self.transport, self.request.call_id or ""
        # Where a request goes to all servers of a topic, two of them may be in one process.
        if transport.server_calls.setdefault(call_id, self) is not self:
            transport.further_calls[call_id, self.server] = self
        return transport.inbox_name

    def end_control(self) -> None:
        """No control frames need to reach this call any more."""
        self.controlled = False
        transport, call_id = self.transport, self.request.call_id or ""
        if transport.server_calls.get(call_id) is self:
            transport.server_calls.pop(call_id, None)
        if transport.further_calls and transport.further_calls.get((call_id, self.server)) is self:
            transport.further_calls.pop((call_id, self.server), None)

    def tick(self, now: float) -> None:
        """Send what is due: that the call runs, a keepalive, or an unconfirmed answer once more."""
        if (reply := self._unconfirmed) is not None:
            self._resend(reply, now)
            return
        if not self.active or self.cancelled or (self.answered and self._stream is None):
            return
        if self._stream is not None:
            self._stream.check(now)
        silent = now - self._last_frame
        if self._extended:
            if not self.started:
                if silent >= STARTED_AFTER:
                    self.send_started()
            elif silent >= KEEPALIVE or self._has_reconnected():
                self.send(Reply(self.request.call_id or "", "keepalive", inbox=self.transport.inbox_name))
        elif self.request.monitor and silent >= max(1, int(self.request.monitor)) / 2:
            # A stock client asked for a reply without result twice in that time.
            self.send(Reply(self.request.call_id or ""))

    def _has_reconnected(self) -> bool:
        """Whether this side has reconnected since the client last heard of the call.

        The client may have lost its connection too, and sends the request again if it hears nothing.
        """
        up_since = self.transport.driver.up_since
        return up_since is not None and up_since > self._last_frame

    def on_control(self, control: Control) -> None:
        """Handle a control frame of the client."""
        if control.kind == "cancel":
            self.cancelled = True
        if control.kind in ("cancel", "confirm"):
            self.confirmed = True
            self._on_confirmed()
        if self._stream is not None:
            self._stream.on_control(control)
        if control.kind == "cancel":
            self.abandon()

    def abandon(self) -> None:
        """The client takes no answer any more, or has disappeared: interrupt the method, where it can be."""
        self.cancelled = True
        interrupt = self.interrupt
        if interrupt is not None:
            interrupt()


def deadline_of(request: Request, delivery: Delivery) -> float | None:
    """Seconds of `Loop.now`, or None if the request has no deadline.

    If the message system does not say how long it kept the message, the sender's wall clock may shorten the time; but
    clocks differ, so a wall clock alone never makes a request expire. The time since it arrived here is known.
    """
    hints, left = request.hints, delivery.message.ttl  # what was left when it arrived
    ttl = None if hints is None else hints.ttl
    if ttl is not None:
        if left is not None:
            left = min(left, ttl)
        elif hints is None or hints.at is None:
            left = ttl
        else:
            arrived = time.time() - (Loop.now() - delivery.arrived)
            left = max(ttl - max(0.0, arrived - hints.at), min(ttl, 1.0))
    return None if left is None else delivery.arrived + left


def time_left(request: Request, delivery: Delivery) -> float | None:
    """Seconds that are left to a request, or None if it has no deadline; see `deadline_of`."""
    deadline = deadline_of(request, delivery)
    return None if deadline is None else deadline - Loop.now()
