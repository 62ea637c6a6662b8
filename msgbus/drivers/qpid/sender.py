"""Sending on Qpid: any number of messages in flight over one link, and what waits until it can go."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.qpid import topology
from msgbus.drivers.qpid.codec import MAX_TTL, encode_message, encode_string, encode_symbol
from msgbus.drivers.qpid.engine import (
    ACCEPTED,
    REJECTED,
    Condition,
    Engine,
    EngineError,
    SendingLink,
    outcome_of,
    rejection_of,
    settle,
    was_settled,
)
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingException,
    TransportBlocked,
    TransportUnavailable,
)
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

NOT_FOUND = "amqp:not-found"
FULL = "amqp:resource-limit-exceeded"
TOO_LARGE = "amqp:link:message-size-exceeded"

FORBIDDEN_FOR = 10.0
"""Seconds for which nothing more is sent to where the user may not send: each try costs what is in flight with it."""

REATTACH_DELAY = 0.05
"""Seconds before the relay is attached again that the broker has closed."""

LOOKS_APART = 0.01
"""Seconds at least between two looks at what the broker has not answered."""

_FOREVER = float("inf")
_SENT = Sent()
_NOBODY = Sent(reached=0)


class Outgoing:
    """A message on its way, and the future of its sender."""

    __slots__ = ("address", "declared", "expires", "gives_up", "mandatory", "message", "sent")

    def __init__(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        self.address = address
        self.message = message
        self.mandatory = mandatory
        self.sent = sent
        self.declared = False
        now = time.monotonic()
        self.expires = _FOREVER if message.ttl is None else now + message.ttl
        self.gives_up = self.expires if message.wait is None else now + message.wait


class _Route:
    """A route, with its address encoded."""

    __slots__ = ("declare", "to")

    def __init__(self, route: topology.Route) -> None:
        self.to = encode_string(route.to)
        self.declare = route.declare


OnDeclared = Callable[[str | None], None]


class Sender:
    """Sends over the relay, which takes messages to any address. On the loop's thread, but for `unfinished`.

    What is handed over while the connection is away, or the broker gives no credit, waits here until its patience ends.
    """

    def __init__(
        self,
        loop: Loop,
        name: Callable[[], str],
        away: Callable[[], TransportUnavailable | None],
        declare: Callable[[topology.Source, OnDeclared], None] | None,
        on_attached: Callable[[], None],
        on_lost: Callable[[Exception], None],
        *,
        durable: bool,
    ) -> None:
        """Make one without a connection.

        Args:
            loop: for what comes later.
            name: of the broker, for texts.
            away: why there is no connection.
            declare: makes a node that has to be there before a message is sent to it, and then says why it could not;
                None: nothing is declared.
            on_attached: called when the relay is there. It is to call `release` when messages may go.
            on_lost: called when the relay is lost without its connection.
            durable: whether messages that are marked so are sent so.
        """
        self._loop = loop
        self._name = name
        self._away = away
        self._declare = declare
        self._on_attached = on_attached
        self._on_lost = on_lost
        self._durable = durable
        self._engine: Engine | None = None
        self._numbers = itertools.count()
        self._relay: _Relay | None = None
        self._suspects: set[Address] = set()
        self._alone = False
        self._forbidden: dict[Address, tuple[float, str]] = {}
        self._ready = False
        self._closed: MessagingException | None = None
        self._waiting: deque[Outgoing] = deque()
        self._declaring: dict[str, list[Outgoing]] = {}
        self._declared: set[str] = set()
        self._in_flight: dict[Any, Outgoing] = {}
        self._looks_at = _FOREVER
        self._route: Callable[[Address], _Route] = lru_cache(10_000)(lambda address: _Route(topology.route(address)))
        self._content_type: Callable[[str], bytes] = lru_cache(100)(encode_symbol)

    def check(self, address: Address) -> None:
        """Raise what is wrong with an address. Any thread.

        Raises:
            InvalidTarget: it cannot be named on Qpid.
        """
        self._route(address)

    def send(self, outgoing: Outgoing) -> None:
        """Send it, or have it wait."""
        if self._closed is not None:
            fail(outgoing.sent, self._closed)
        elif self._forbidden and not self._check_rights(outgoing):
            pass
        elif self._may_go(outgoing) and not self._waiting:
            self._transmit(outgoing)
        else:
            self._wait(outgoing)

    def _may_go(self, outgoing: Outgoing) -> bool:
        if not self._ready or self._alone or self._relay is None or self._relay.credit <= 0:
            return False
        return not (self._suspects and self._in_flight and outgoing.address in self._suspects)

    def _wait(self, outgoing: Outgoing) -> None:
        self._waiting.append(outgoing)
        if outgoing.gives_up < _FOREVER:
            left = max(0.0, outgoing.gives_up - time.monotonic())
            self._loop.call_later(left, lambda: self._expire(outgoing))

    def _expire(self, outgoing: Outgoing) -> None:
        if outgoing.sent.done() or outgoing not in self._waiting:
            return  # It is on its way by now; `_look` sees to it.
        self._waiting.remove(outgoing)
        self._fail_expired(outgoing)

    def _fail_expired(self, outgoing: Outgoing) -> None:
        patience = outgoing.message.patience
        if self._ready:
            text = f"{self._name()} takes no messages at present, and did not for {patience:.3g} s"
            fail(outgoing.sent, TransportBlocked(f"{text}: to {outgoing.address}"))
        else:
            cause = self._away() or f"{self._name()} is not connected yet"
            fail(outgoing.sent, TransportUnavailable(f"gave up after {patience:.3g} s: {cause}"))

    def _transmit(self, outgoing: Outgoing) -> None:
        route = self._route(outgoing.address)
        if route.declare is not None and self._declare is not None and route.declare.address not in self._declared:
            self._declare_first(route.declare, outgoing)
        else:
            self._write(route, outgoing)

    def _write(self, route: _Route, outgoing: Outgoing) -> None:
        relay, message = self._relay, outgoing.message
        assert relay is not None
        ttl = None
        if outgoing.expires < _FOREVER:
            milliseconds = (outgoing.expires - time.monotonic()) * 1000
            ttl = max(1, int(milliseconds)) if milliseconds < MAX_TTL else None
        data = encode_message(
            route.to,
            encode_string(message.id),
            self._content_type(message.content_type),
            message.body,
            ttl,
            message.durable and self._durable,
        )
        if relay.limit and len(data) > relay.limit:
            text = f"a message of {len(data)} bytes to {outgoing.address}; {self._name()} takes at most {relay.limit}"
            fail(outgoing.sent, MessageTooLarge(text))
            return
        self._in_flight[relay.transfer(data)] = outgoing
        if outgoing.gives_up < self._looks_at:
            self._look_at(outgoing.gives_up)
        if self._suspects and outgoing.address in self._suspects:
            self._alone = True

    # Declaring what has to be there before a message

    def _declare_first(self, source: topology.Source, outgoing: Outgoing) -> None:
        outgoing.declared = True
        if outgoing.gives_up < self._looks_at:
            self._look_at(outgoing.gives_up)
        waiting = self._declaring.get(source.address)
        if waiting is not None:
            waiting.append(outgoing)
            return
        self._declaring[source.address] = [outgoing]
        assert self._declare is not None
        self._declare(source, lambda refusal: self._on_declared(source, refusal))

    def _on_declared(self, source: topology.Source, refusal: str | None) -> None:
        """It is there, or the broker refuses it: then so are the messages that need it."""
        if refusal is None:
            self._declared.add(source.address)
        for outgoing in self._declaring.pop(source.address, []):
            if refusal is not None and self._ready:
                text = f"{self._name()} refuses {outgoing.address}: {refusal}"
                fail(outgoing.sent, TransportUnavailable(text))
            elif self._may_go(outgoing):
                self._write(self._route(outgoing.address), outgoing)
            else:
                self._wait(outgoing)

    # What the relay says

    def connected(self, engine: Engine) -> None:
        """The connection is open: attach the relay."""
        self._engine = engine
        self._relay = _Relay(self)
        self._relay.attach(engine, f"relay.{next(self._numbers)}", None)

    def attached(self, relay: _Relay) -> None:
        """The relay is there."""
        relay.was_attached = True
        relay.limit = relay.max_message_size
        self._on_attached()

    def detached(self, relay: _Relay, condition: Condition | None) -> None:
        """The broker refuses the relay, or closes it."""
        if relay is not self._relay:
            return
        condition = condition or Condition("amqp:link:detach-forced", "no reason was given")
        if not relay.was_attached:
            self._on_lost(EngineError(condition))  # Then the connection is of no use.
            return
        LOG.warning("%s closed the link on which messages go: %s", self._name(), condition)
        lost = self._lose_all()
        if condition.is_forbidden:
            self._on_forbidden(lost, condition)
        else:
            for outgoing in lost:
                text = f"to {outgoing.address}: {self._name()} closed the link: {condition}"
                fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))
        # Whether the session ends too is known in a moment.
        engine = self._engine
        self._loop.call_later(REATTACH_DELAY, lambda: self._attach_again(engine))

    def _attach_again(self, engine: Engine | None) -> None:
        if engine is not None and engine is self._engine:
            self.connected(engine)

    def _on_forbidden(self, lost: list[Outgoing], condition: Condition) -> None:
        """Somebody may not send what he sent. Qpid closes the link for it, and does not say which message it was.

        If it was alone it is known. Else messages to these addresses go alone from now on, until one has arrived.
        """
        name = self._name()
        if len(lost) == 1:
            where = lost[0].address
            text = f"{name} refused a message to {where}: {condition}; check the user's rights to publish"
            self._forbidden[where] = (time.monotonic() + FORBIDDEN_FOR, text)
            self._suspects.discard(where)
            fail(lost[0].sent, TransportUnavailable(text))
            return
        self._suspects.update(outgoing.address for outgoing in lost)
        for outgoing in lost:
            what = f"{name} refused this or another message: {condition}; check the user's rights to publish"
            fail(outgoing.sent, TransportUnavailable(f"to {outgoing.address}: {what}", maybe_delivered=True))

    def _check_rights(self, outgoing: Outgoing) -> bool:
        """Whether it is not known that this would be refused, and with it what is in flight."""
        until, text = self._forbidden.get(outgoing.address, (0.0, ""))
        if until > time.monotonic():
            fail(outgoing.sent, TransportUnavailable(text))
            return False
        self._forbidden.pop(outgoing.address, None)
        return True

    def release(self) -> None:
        """Let go what waits: replies to it will arrive."""
        self._ready = True
        self.go_on()

    def go_on(self) -> None:
        """Send what waits, as far as there is credit."""
        now = time.monotonic()
        while self._waiting and self._may_go(self._waiting[0]):
            outgoing = self._waiting.popleft()
            if outgoing.sent.done():
                continue
            if outgoing.gives_up <= now:
                self._fail_expired(outgoing)
            elif not self._forbidden or self._check_rights(outgoing):
                self._transmit(outgoing)

    def settled(self, delivery: Any) -> None:
        """The broker has said what became of a message."""
        outcome = outcome_of(delivery)
        if not outcome and not was_settled(delivery):
            return
        outgoing = self._in_flight.pop(delivery, None)
        if self._alone and outgoing is not None:
            self._alone = False
            self._suspects.discard(outgoing.address)
            self._loop.call(self.go_on)
        if outgoing is None or outcome == ACCEPTED:
            settle(delivery)
            if outgoing is not None:
                finish(outgoing.sent, _SENT)
            return
        condition = rejection_of(delivery) if outcome == REJECTED else None
        settle(delivery)
        if condition is not None:
            self._on_rejected(outgoing, condition)
        elif outcome:
            fail(outgoing.sent, TransportBlocked(f"{self._name()} gave a message to {outgoing.address} back"))
        else:
            text = f"{self._name()} did not say what became of a message to {outgoing.address}"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))

    def _on_rejected(self, outgoing: Outgoing, condition: Condition) -> None:
        name, where = self._name(), outgoing.address
        if condition.name == NOT_FOUND:
            declare = self._route(where).declare
            if declare is not None and self._declare is not None and not outgoing.declared:
                self._declared.discard(declare.address)  # Somebody has deleted it since.
                self._declare_first(declare, outgoing)
            elif outgoing.mandatory or where.kind in ("stored", "dead"):
                fail(outgoing.sent, MessageUndeliverable(f"nobody listens at {where} on {name}"))
            else:
                finish(outgoing.sent, _NOBODY)
        elif condition.name == FULL:
            fail(outgoing.sent, TransportBlocked(f"{name} refused a message to {where}: {condition.text}"))
        elif condition.is_forbidden:
            text = f"{name} refused a message to {where}: {condition.text}; check the user's rights to publish"
            fail(outgoing.sent, TransportUnavailable(text))
        elif condition.name == TOO_LARGE:
            fail(outgoing.sent, MessageTooLarge(f"{name} refused a message to {where}: {condition.text}"))
        else:
            hint = "; a virtual host in memory needs the option durable=false" if "durable" in condition.text else ""
            fail(outgoing.sent, MessageDeliveryFailure(f"{name} refused a message to {where}: {condition}{hint}"))

    def down(self, error: TransportUnavailable) -> None:
        """The connection has broken."""
        self._engine = None
        self._declared.clear()
        for outgoing in self._lose_all():
            text = f"the connection broke while a message to {outgoing.address} was being sent: {error}"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))

    def _lose_all(self) -> list[Outgoing]:
        """Nothing can go at present; what was in flight."""
        self._ready = self._alone = False
        self._relay = None
        lost, self._in_flight = self._in_flight, {}
        return list(lost.values())

    def _look_at(self, when: float) -> None:
        """Look at that time, in seconds of `time.monotonic`, at what the broker has not answered."""
        self._looks_at = when
        self._loop.call_later(max(LOOKS_APART, when - time.monotonic()), lambda: self._look(when))

    def _look(self, when: float) -> None:
        """Give up what the broker has not answered by the end of its patience: it may be frozen."""
        if when == self._looks_at:  # else there will be an earlier look, or was one
            self._looks_at = _FOREVER
        now = time.monotonic()
        later = _FOREVER
        for outgoing in self._in_flight.values():
            if outgoing.sent.done():
                continue
            if outgoing.gives_up > now:
                later = min(later, outgoing.gives_up)
                continue
            text = f"{self._name()} did not take a message to {outgoing.address} in time"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))
        for outgoings in self._declaring.values():
            for outgoing in outgoings:
                if outgoing.gives_up > now:
                    later = min(later, outgoing.gives_up)
                    continue
                text = f"{self._name()} did not declare {outgoing.address} in time"
                fail(outgoing.sent, TransportUnavailable(text))
        if later < self._looks_at:
            self._look_at(later)

    def fail_waiting(self, error: MessagingException) -> None:
        """Fail what waits: there is no hope of a connection."""
        waiting, self._waiting = self._waiting, deque()
        for outgoing in waiting:
            fail(outgoing.sent, error)

    def close(self, error: MessagingException) -> None:
        """Fail what waits, what is in flight, and what comes from now on."""
        self._closed = error
        self._ready = False
        for sent in self.unfinished():
            fail(sent, error)
        self._waiting.clear()
        self._in_flight.clear()
        self._declaring.clear()

    def unfinished(self) -> list[Future[Sent]]:
        """The futures of all that is waiting or in flight."""
        declaring = [outgoing for waiting in self._declaring.values() for outgoing in waiting]
        return [outgoing.sent for outgoing in (*self._in_flight.values(), *self._waiting, *declaring)]


class _Relay(SendingLink):
    """On one connection.

    Attributes:
        limit: bytes of the largest message; 0: none is known.
        was_attached: the broker has taken it once.
    """

    limit = 0
    was_attached = False

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def on_attached(self) -> None:
        self._sender.attached(self)

    def on_detached(self, condition: Condition | None) -> None:
        self._sender.detached(self, condition)

    def on_flow(self) -> None:
        self._sender.go_on()

    def on_delivery(self, delivery: Any) -> None:
        self._sender.settled(delivery)
