"""Sending: a message that is sent until its outcome is known, or once to one of two addresses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.toolkit.futures import LightFuture
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.encoding import encode_control
from msgbus.exceptions import MessageDeliveryFailure, MessageUndeliverable, TransportBlocked, TransportUnavailable
from msgbus.foreign import get_logger
from msgbus.message import Control, new_id

if TYPE_CHECKING:
    from msgbus.pending import Pending
    from msgbus.replies import ReplyRouter

LOG = get_logger(__name__)

RETRY_DELAY = 0.25
"""Seconds between two tries to deliver a message; less where its deadline is near."""
RETRY_DELAY_MIN = 0.01
"""Seconds: with less than twice that left, there is no further try."""
CONTROL_TTL = 30.0
"""Seconds after which a control frame is worthless."""

OnOutcome = Callable[[BaseException | None], None]


def ignore(_error: BaseException | None) -> None:
    """An `OnOutcome` that does nothing."""


class Sender(Protocol):
    """The part of `Transport` that is used here."""

    closed: bool
    loop: Loop
    router: ReplyRouter
    retries: dict[Sending, None]

    def send(
        self,
        address: Address,
        message: Message,
        *,
        mandatory: bool,
        fallback: Address | None = None,
        until: float | None = None,
    ) -> Future[Sent]:
        """See `Transport.send`."""

    def listeners_return_until(self) -> float:
        """See `Transport.listeners_return_until`."""


@dataclass(slots=True, eq=False, repr=False)
class Sending:
    """A message that is sent until its outcome is known; see `Transport.send`, which sends it for the first time.

    (Closures would do, but leave reference cycles to the garbage collector.)
    """

    sender: Sender
    address: Address
    message: Message
    mandatory: bool
    fallback: Address | None
    until: float
    retry_undeliverable: float | None
    pending: Pending | None
    on_outcome: OnOutcome
    _first_unknown: BaseException | None = None
    _first_at: float = 0.0
    _last: BaseException | None = None
    _tries_until: float = 0.0

    def __post_init__(self) -> None:
        send_timeout = self.message.publish_within
        if send_timeout is None:
            self._tries_until = self.until
        else:
            self._tries_until = min(self.until, Loop.now() + send_timeout)

    def on_sent(self, sent: Future[Sent]) -> None:
        """A try has ended."""
        self._last = error = sent.exception()
        if error is None:
            self.on_outcome(None)
            return
        now = Loop.now()
        if self._first_unknown is None and getattr(error, "maybe_delivered", False):
            self._first_unknown, self._first_at = error, now
        left = self._worth_until(error) - now
        if left < 2 * RETRY_DELAY_MIN or self.sender.closed:
            self.on_outcome(self._explain(error))
            return
        LOG.debug("sending %s again: %s", self.message.id, error)
        self._retry_in(min(RETRY_DELAY, left / 2), error)

    def _retry_in(self, delay: float, error: BaseException) -> None:
        self.sender.retries[self] = None
        try:
            self.sender.loop.call_later(delay, self._send_again)
        except TransportUnavailable:  # No thread can be started any more: the interpreter is ending.
            self.give_up(self._explain(error))
        if self.sender.closed:  # Checked last: if it is closed after this, `cleanup` finds this retry.
            self.give_up(self._explain(error))

    def _worth_until(self, error: BaseException) -> float:
        """Until when there may be another try after this error."""
        if isinstance(error, MessageUndeliverable) and self.retry_undeliverable is not None:
            return self.retry_undeliverable
        may_pass = isinstance(error, MessageUndeliverable | TransportUnavailable | TransportBlocked)
        # A full queue will have room again. (If the message system blocks all senders, the driver has already waited.)
        if isinstance(error, TransportBlocked) or (may_pass and self._first_unknown is not None):
            return self._tries_until
        if isinstance(error, MessageUndeliverable):
            return min(self._tries_until, self.sender.listeners_return_until())
        return 0.0

    def _explain(self, last: BaseException) -> BaseException:
        """What is known at the end: the last error alone, or the first unknown outcome and the last error."""
        first = self._first_unknown
        if first is None or first is last or not isinstance(last, MessageDeliveryFailure):
            return last
        seconds = Loop.now() - self._first_at
        error = TransportUnavailable(
            f"it may have been delivered, and may have run, {seconds:.1f} s ago: {first}. It has been sent again "
            f"since, and was not accepted: {last}",
            maybe_delivered=True,
        )
        error.__cause__ = last
        return error

    def _send_again(self) -> None:
        # Taking it out of the table is a single step, so the loop and `give_up` never both act.
        if self.sender.retries.pop(self, self) is not None:
            return  # It was given up.
        if self.pending is not None and self.pending not in self.sender.router:
            assert self._last is not None
            self.on_outcome(self._explain(self._last))
            return
        message = self.message
        now = Loop.now()
        ttl = None if message.ttl is None else max(self.until - now, 0.001)
        send_timeout = None if self._tries_until == FOREVER else max(self._tries_until - now, 0.001)
        again = Message(message.body, message.content_type, message.id, ttl, message.durable, send_timeout)
        sent = self.sender.send(self.address, again, mandatory=self.mandatory, fallback=self.fallback)
        sent.add_done_callback(self.on_sent)

    def give_up(self, error: BaseException) -> None:
        """There will be no further try."""
        if self.sender.retries.pop(self, self) is None:
            self.on_outcome(error)


def send_control(sender: Sender, inbox: str, control: Control, content_type: str) -> None:
    """Send a control frame to a server; nobody waits for it.

    It is sent again after an unknown outcome: a control frame may arrive twice.
    """
    message_id = f"{control.call_id}.{new_id()[:8]}.{control.kind}"
    message = Message(encode_control(control, content_type), content_type, message_id, CONTROL_TTL)
    sender.send(Address("inbox", name=inbox), message, mandatory=False, until=Loop.now() + CONTROL_TTL)


def server_named_by(address: Address) -> Address | None:
    """The server that a topic with a dot may stand for: ``host1`` of ``conductor`` for ``conductor.host1``.

    Services of OpenStack write it so. Such a topic is first tried as it is, since topics may contain dots. The first
    dot ends the topic, since the name of a host may contain dots.
    """
    if address.kind != "topic":
        return None
    topic, _, server = address.topic.partition(".")
    return Address("server", address.exchange, topic, server) if topic and server else None


def or_else(sent: Future[Sent], send_to_fallback: Callable[[], Future[Sent]]) -> Future[Sent]:
    """The outcome of a sending, or of another one if the first was undeliverable."""
    outcome: Future[Sent] = LightFuture()

    def on_sent(first: Future[Sent]) -> None:
        error = first.exception()
        if isinstance(error, MessageUndeliverable):
            send_to_fallback().add_done_callback(lambda second: _copy_outcome(second, outcome, error))
        else:
            _copy_outcome(first, outcome)

    sent.add_done_callback(on_sent)
    return outcome


def _copy_outcome(sent: Future[Sent], outcome: Future[Sent], first: MessageUndeliverable | None = None) -> None:
    """Give one future the outcome of another; `first` is why the first address was undeliverable."""
    error = sent.exception()
    if error is None:
        outcome.set_result(sent.result())
    elif first is not None and isinstance(error, MessageUndeliverable):
        outcome.set_exception(MessageUndeliverable(f"{first}; no server has that name either: {error}"))
    else:
        outcome.set_exception(error)
