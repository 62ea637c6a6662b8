"""The link of one connection that takes messages to any address (AMQP 1.0's anonymous relay). On the loop's thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from msgbus.drivers.base import Address, Sent
from msgbus.drivers.qpid import management, topology
from msgbus.drivers.qpid.codec import MAX_TTL, encode_message, encode_string, encode_symbol
from msgbus.drivers.qpid.connection import Wire
from msgbus.drivers.qpid.engine import (
    ACCEPTED,
    REJECTED,
    Condition,
    EngineError,
    SendingLink,
    outcome_of,
    rejection_of,
    settle,
    was_settled,
)
from msgbus.drivers.qpid.management import SILENT, Answer
from msgbus.drivers.qpid.nodes import not_declared
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.drivers.toolkit.sending import Offer, OnDeclared, Outgoing
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessageTooLarge,
    MessageUndeliverable,
    TransportBlocked,
    TransportUnavailable,
)
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

NOT_FOUND = "amqp:not-found"
FULL = "amqp:resource-limit-exceeded"
TOO_LARGE = "amqp:link:message-size-exceeded"
FORBIDDEN_FOR = 10.0
"""Seconds for which nothing is sent to an address that the user may not send to: each try also loses the messages in
flight."""
REATTACH_DELAY = 0.05
"""Seconds until a link that the broker has closed is attached again."""
_NOBODY = Sent(reached=0)
_DECLARED_AGAIN = "declared again"


class _Route:
    """A route, with its address encoded."""

    __slots__ = ("declare", "to")

    def __init__(self, route: topology.Route) -> None:
        self.to = encode_string(route.to)
        self.declare = route.declare


@lru_cache(10_000)
def route_of(address: Address) -> _Route:
    """Where a message goes.

    Raises:
        InvalidTarget: the address cannot be named on Qpid.
    """
    return _Route(topology.route(address))


_content_type = lru_cache(100)(encode_symbol)


class Relay(SendingLink):
    """See the module's text. When the broker closes it, it is attached again."""

    def __init__(
        self, session: Wire, on_change: Callable[[bool], None], on_refused: Callable[[BaseException], None]
    ) -> None:
        """Attach it.

        Args:
            session: of the connection.
            on_change: called when this changes: whether messages can be sent.
            on_refused: called if the broker refuses the link, so that the connection is unusable.
        """
        self._session = session
        self._on_change = on_change
        self._on_refused = on_refused
        self._attempts = 0
        self._attaching = 0  # the number of the attempt that is not answered yet, or 0
        self._limit = 0
        self._was_attached = False
        self._in_flight: dict[Any, Outgoing] = {}
        self._declared: set[str] = set()
        # The addresses that the user may not send to: until when that is assumed, and the error. `_suspects` are those
        # for which this may be so; see `_on_forbidden`.
        self._forbidden: dict[Address, tuple[float, str]] = {}
        self._suspects: set[Address] = set()
        self._alone = False
        self._attach()

    def _attach(self) -> None:
        self._attempts += 1
        self._attaching = self._attempts
        self.attach(self._session.engine, f"relay.{self._attempts}", None)

    def on_attached(self) -> None:
        self._was_attached = True
        self._attaching = 0
        self._limit = self.max_message_size
        self._on_change(True)

    def on_flow(self) -> None:
        self._session.driver.sender.go_on()

    # Sending

    def publish(self, outgoing: Outgoing) -> Offer:
        """See `Session.publish`."""
        where = outgoing.address
        if self._forbidden:
            self._check_rights(where)
        if self._alone or not self.attached or self.credit <= 0:
            return Offer.FULL
        if self._suspects and self._in_flight and where in self._suspects:
            return Offer.FULL
        route = route_of(where)
        declare = route.declare
        if declare is not None and self._session.driver.declares and declare.address not in self._declared:
            return Offer.UNDECLARED
        data = self._encode(route, outgoing)
        if self._limit and len(data) > self._limit:
            name = self._session.driver.name()
            text = f"a message of {len(data)} bytes to {where}; {name} takes at most {self._limit}"
            raise MessageTooLarge(text)
        self._in_flight[self.transfer(data)] = outgoing
        self._alone = bool(self._suspects) and where in self._suspects
        return Offer.SENT

    def _encode(self, route: _Route, outgoing: Outgoing) -> bytes:
        message, ttl = outgoing.message, None
        if outgoing.expires < FOREVER:
            milliseconds = (outgoing.expires - Loop.now()) * 1000
            ttl = max(1, int(milliseconds)) if milliseconds < MAX_TTL else None
        return encode_message(
            route.to,
            encode_string(message.id),
            _content_type(message.content_type),
            message.body,
            ttl,
            message.durable and self._session.driver.durable,
        )

    def declare(self, address: Address, declared: OnDeclared) -> None:
        """See `Session.declare`."""
        source = route_of(address).declare
        assert source is not None

        def on_declared(answer: Answer | None) -> None:
            if answer is None:
                self._declared.add(source.address)
                declared()
            else:
                refusal = TransportUnavailable(not_declared(self._session.driver.name(), address, answer))
                declared(refusal, hold=answer.status == SILENT)

        self._session.declare_node(source, on_declared)

    # What the broker says

    def on_delivery(self, delivery: Any) -> None:
        """The broker has settled a message."""
        outcome = outcome_of(delivery)
        if not outcome and not was_settled(delivery):
            return
        outgoing = self._in_flight.pop(delivery, None)
        condition = rejection_of(delivery) if outcome == REJECTED else None
        settle(delivery)
        if outgoing is None:
            return
        if self._alone:
            self._alone = False
            self._suspects.discard(outgoing.address)
            self._session.driver.loop.call(self._session.driver.sender.go_on)
        if outcome == ACCEPTED:
            outgoing.confirmed()
            return
        name, where = self._session.driver.name(), outgoing.address
        if condition is not None:
            self._on_rejected(outgoing, condition)
        elif outcome:
            outgoing.blocked(f"{name} gave a message to {where} back")
        else:
            text = f"{name} did not report the outcome of a message to {where}"
            outgoing.failed(TransportUnavailable(text, maybe_delivered=True))

    def _on_rejected(self, outgoing: Outgoing, condition: Condition) -> None:
        name, where = self._session.driver.name(), outgoing.address
        refusal = f"{name} refused a message to {where}: {condition.text}"
        if condition.name == NOT_FOUND:
            self._on_missing(outgoing)
        elif condition.name == FULL:
            outgoing.failed(TransportBlocked(refusal))
        elif condition.is_forbidden:
            outgoing.failed(TransportUnavailable(f"{refusal}; check the user's rights to publish"))
        elif condition.name == TOO_LARGE:
            outgoing.failed(MessageTooLarge(refusal))
        else:
            hint = "; a virtual host in memory needs the option durable=false" if "durable" in condition.text else ""
            outgoing.failed(MessageDeliveryFailure(f"{name} refused a message to {where}: {condition}{hint}"))

    def _on_missing(self, outgoing: Outgoing) -> None:
        """There is no such node, or nothing is bound for the message."""
        where = outgoing.address
        text = f"nobody listens at {where} on {self._session.driver.name()}"
        declare = route_of(where).declare
        if declare is not None and self._session.driver.declares and outgoing.notes is not _DECLARED_AGAIN:
            self._declared.discard(declare.address)  # It has been deleted since.
            outgoing.notes = _DECLARED_AGAIN
            outgoing.hold(TransportUnavailable(text))
        elif outgoing.mandatory or where.kind in ("stored", "dead"):
            outgoing.failed(MessageUndeliverable(text))
        else:
            outgoing.confirmed(_NOBODY)

    def on_detached(self, condition: Condition | None) -> None:
        """The broker refuses the link, or closes it."""
        condition = condition or Condition("amqp:link:detach-forced", "no reason was given")
        if not self._was_attached:
            self._on_refused(EngineError(condition))
            return
        driver = self._session.driver
        LOG.warning("%s closed the link on which messages are sent: %s", driver.name(), condition)
        self._in_flight.clear()
        self._alone = False
        self._on_change(False)
        lost = driver.sender.disconnected()
        if condition.is_forbidden:
            self._on_forbidden(lost, condition)
        else:
            for outgoing in lost:
                text = f"to {outgoing.address}: {driver.name()} closed the link: {condition}"
                outgoing.failed(TransportUnavailable(text, maybe_delivered=True))
        # If the session ends too, that is known in a moment.
        driver.loop.call_later(REATTACH_DELAY, self._attach_again)

    def _attach_again(self) -> None:
        if self._session.is_open:
            self._attach()
            self._session.driver.loop.call_later(management.ANSWER_TIMEOUT, self._check_attached, self._attaching)

    def _check_attached(self, attempt: int) -> None:
        """Give the connection up if nothing can be sent over it any more."""
        if self._session.is_open and attempt == self._attaching:
            seconds, name = management.ANSWER_TIMEOUT, self._session.driver.name()
            text = f"it has not attached the link on which messages are sent within {seconds:g} s"
            if not self._session.move(f"{name}: {text}"):
                self._on_refused(TimeoutError(text))

    # Rights

    def _on_forbidden(self, lost: list[Outgoing], condition: Condition) -> None:
        """The user may not send one of the messages. Qpid closes the link, and does not say which one it was.

        If only one was in flight, it is known. Else messages to these addresses are sent one at a time, until one is
        accepted.
        """
        name = self._session.driver.name()
        if len(lost) == 1:
            where = lost[0].address
            text = f"{name} refused a message to {where}: {condition}; check the user's rights to publish"
            self._forbidden[where] = (Loop.now() + FORBIDDEN_FOR, text)
            self._suspects.discard(where)
            lost[0].failed(TransportUnavailable(text))
            return
        self._suspects.update(outgoing.address for outgoing in lost)
        for outgoing in lost:
            what = f"{name} refused this or another message: {condition}; check the user's rights to publish"
            outgoing.failed(TransportUnavailable(f"to {outgoing.address}: {what}", maybe_delivered=True))

    def _check_rights(self, where: Address) -> None:
        """Refuse a message that is known to be forbidden: the link would be closed, with all that is in flight.

        Raises:
            TransportUnavailable: it is.
        """
        until, text = self._forbidden.get(where, (0.0, ""))
        if until > Loop.now():
            raise TransportUnavailable(text)
        self._forbidden.pop(where, None)
