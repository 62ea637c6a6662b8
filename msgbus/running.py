"""Running: one request that a server runs for a client that waits, and all that it tells that client."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from msgbus.closing import end_child
from msgbus.drivers.base import Address, Message
from msgbus.exceptions import MessageTooLarge, SerializationError
from msgbus.failures import serialize_failure
from msgbus.foreign import get_logger
from msgbus.forking import fork_count
from msgbus.message import Control, Reply, Request, encode_reply
from msgbus.replies import KEEPALIVE
from msgbus.streams import OnOutcome, StreamSender

if TYPE_CHECKING:
    from msgbus.transport import Transport

LOG = get_logger(__name__)

ID_LENGTH = 32
"""Characters of the ids of msgbus and of oslo.messaging."""
STARTED_AFTER = 0.2
"""Seconds that a call runs before its client is told that it does: most are done by then."""
CONFIRMED_AFTER = 1.0
"""Seconds for an answer to be confirmed, where it has to be, before it is sent again; twice as long the next time."""


class Running:
    """Answers one request. Thread-safe: the endpoint's thread, the loop and the inbox use it.

    Attributes:
        request: what is run.
        answered: an answer has been begun. `on_end` is called when the client has it, or it could not be delivered.
        cancelled: the client does not want the answer any more.
        confirmed: the client has said that it has the answer, or that it wants none.
    """

    __slots__ = (
        "_address",
        "_again_after",
        "_confirms",
        "_content_type",
        "_deadline",
        "_durable",
        "_extended",
        "_forks",
        "_frames",
        "_grace",
        "_handed_over",
        "_last_frame",
        "_on_end",
        "_server",
        "_stream",
        "_too_large",
        "_transport",
        "_unconfirmed",
        "_until",
        "answered",
        "cancelled",
        "confirmed",
        "request",
        "started",
    )

    def __init__(
        self,
        transport: Transport,
        server: str,
        request: Request,
        content_type: str,
        *,
        durable: bool,
        grace: float,
        deadline: float | None,
        on_end: Callable[[Running, BaseException | None], None],
    ) -> None:
        assert request.reply_to is not None
        self.request = request
        self._extended = request.hints is not None
        self._forks = fork_count()
        self.cancelled = False
        self.confirmed = False
        self.started = False
        self.answered = False
        self._transport = transport
        self._server = server
        self._content_type = content_type
        self._durable = durable
        self._confirms = request.hints is not None and request.hints.confirms
        self._grace = grace
        self._deadline = deadline
        self._on_end = on_end
        self._address = Address("inbox", name=request.reply_to)
        self._frames = 0
        self._last_frame = time.monotonic()
        self._stream: StreamSender | None = None
        self._too_large = False
        self._unconfirmed: Reply | None = None
        self._handed_over: float | None = None
        self._again_after = CONFIRMED_AFTER
        self._until = 0.0

    @property
    def is_unconfirmed(self) -> bool:
        """Whether there is an answer that the client has not confirmed."""
        return self._unconfirmed is not None

    def send(self, reply: Reply, on_outcome: OnOutcome | None = None) -> None:
        """Send a frame to the client.

        While this side's connection is away the frame waits as long as the client does; while the client's is, it is
        tried for `rpc_reply_grace`.

        Raises:
            SerializationError: the result cannot be written.
        """
        if self._forks != fork_count():  # The answer is the parent's to give.
            end_child(None)
        reply.extended = self._extended
        reply.server = self._server
        body = encode_reply(reply, self._content_type, lossy=self._transport.lossy)
        now = self._last_frame = time.monotonic()
        end = self._end(now)
        # It begins with the id of the call: whoever looks for that in a log finds its answers too. (Somebody else's id
        # may be of any length, and message systems have limits.)
        self._frames += 1
        message_id = f"{reply.call_id[:ID_LENGTH]}.{self._frames}.{reply.kind}"
        message = Message(body, self._content_type, message_id, end - now, self._durable)
        self._transport.send_until(
            end,
            self._address,
            message,
            mandatory=True,
            retry_undeliverable=now + self._grace,
            on_outcome=on_outcome or self._ignore,
        )

    def _end(self, now: float) -> float:
        """Until when something for the client is worth being sent."""
        end = now + max(self._grace, 1.0)  # An answer needs a moment in any case.
        return end if self._deadline is None else max(end, self._deadline)

    def _ignore(self, error: BaseException | None) -> None:
        """A sign of life that got lost is followed by another."""
        if error is not None:
            LOG.debug("a frame of call %s got lost: %s", self.request.call_id, error)

    def result(self, value: Any) -> None:
        """Answer with a value; where it cannot be written, with an error that says so."""
        try:
            self._answer(Reply(self.request.call_id or "", result=value, ending=True))
        except SerializationError as exc:
            LOG.error("the result of %r %s", self.request.method, exc)
            self.failure(SerializationError(f"the result of {self.request.method!r} {exc}"))

    def failure(self, exc: BaseException) -> None:
        """Answer with an exception."""
        text = serialize_failure(exc)
        if self._stream is not None:
            self._stream.end(text)
        else:
            self._answer(Reply(self.request.call_id or "", failure=text, ending=True))

    def _answer(self, reply: Reply) -> None:
        self.answered = True
        if self.cancelled:  # The client has stopped waiting, and may be gone.
            LOG.debug("the answer to call %s is not sent: its client has cancelled it", reply.call_id)
            self._on_end(self, None)
            return
        if self._confirms:
            reply.confirm = self._transport.inbox(0.0)
            self._until = self._end(time.monotonic()) if self._deadline is None else self._deadline
            self._unconfirmed = reply
        try:
            self.send(reply, self._on_answered)
        except SerializationError:
            self._unconfirmed = None
            raise

    def _on_answered(self, error: BaseException | None) -> None:
        if self._forks != fork_count():
            return  # The parent knows what has become of it.
        if self._confirms and self._stream is None:
            if self._unconfirmed is None:
                return  # It was confirmed before this was known.
            if error is None:
                self._handed_over = time.monotonic()
                return
            self._unconfirmed = None
        if error is not None:
            LOG.warning(
                "the answer to %r (call %s) could not be delivered to %s: %s",
                self.request.method,
                self.request.call_id,
                self._address,
                error,
            )
        if isinstance(error, MessageTooLarge) and not self._too_large and self._stream is None:
            self._too_large = True
            self.failure(MessageTooLarge(f"the answer to {self.request.method!r}: {error}"))
            return
        self._on_end(self, error)

    def _on_confirmed(self) -> None:
        if self._unconfirmed is not None:
            self._unconfirmed = None
            self._on_end(self, None)

    def _answer_again(self, reply: Reply, now: float) -> None:
        """It was handed over, and has not been confirmed: the inbox may have gone with its connection."""
        call = f"the answer to {self.request.method!r} (call {self.request.call_id})"
        if now >= self._until:
            LOG.warning("%s was never confirmed by %s", call, self._address)
            self._on_confirmed()
        elif self._handed_over is not None and now - self._handed_over >= self._again_after:
            LOG.debug("%s was not confirmed and is sent again", call)
            self._handed_over = None
            self._again_after = min(2 * self._again_after, KEEPALIVE)
            self.send(reply, self._on_answered)

    def decline(self) -> None:
        """Tell the client that the request will not be run here, since it may have run before."""
        if self._extended:
            self.send(Reply(self.request.call_id or "", "declined"))

    def stream(self, items: Generator[Any, Any, Any]) -> None:
        """Send a generator's items, within the client's credit.

        Raises:
            Exception: what the generator raises; `failure` is to tell the client of it.
        """
        self.answered = True
        sender = StreamSender(
            self.send,
            self._on_answered,
            self.request.call_id or "",
            self._content_type,
            self.request.window or 1,
            str(self._address),
            lambda: self._transport.driver.up_since,
            lossy=self._transport.lossy,
        )
        self._stream = sender
        if self.cancelled:  # It came before there was a stream to tell.
            sender.on_control(Control(self.request.call_id or "", "cancel"))
        self.begin()
        sender.run(items)

    def begin(self) -> None:
        """Tell the client that the request runs, and where its server can be told things."""
        if not self.started and self._extended:
            self.started = True
            self.send(Reply(self.request.call_id or "", "started", inbox=self._transport.inbox(0.0)))

    def show_life(self, now: float) -> None:
        """Send what is due to a client that waits. Called every now and then while the request runs."""
        if (reply := self._unconfirmed) is not None:
            self._answer_again(reply, now)
            return
        if self.cancelled or (self.answered and self._stream is None):
            return
        silent = now - self._last_frame
        if self._extended:
            if not self.started:
                if silent >= STARTED_AFTER:
                    self.begin()
            elif silent >= KEEPALIVE or self._was_cut_off():
                self.send(Reply(self.request.call_id or "", "keepalive", inbox=self._transport.inbox(0.0)))
        elif self.request.monitor and silent >= max(1, int(self.request.monitor)) / 2:
            # A stock client asked for a reply without result twice in that time.
            self.send(Reply(self.request.call_id or ""))

    def _was_cut_off(self) -> bool:
        """Whether this side's connection has come back since the client last heard of it.

        The client may have been cut off too, and sends the request again where it hears nothing.
        """
        up_since = self._transport.driver.up_since
        return up_since is not None and up_since > self._last_frame

    def on_control(self, control: Control) -> None:
        """Take in a frame of the client's."""
        if control.kind == "cancel":
            self.cancelled = True
        if control.kind in ("cancel", "confirm"):
            self.confirmed = True
            self._on_confirmed()
        if self._stream is not None:
            self._stream.on_control(control)
