"""Subscriptions and inboxes on Qpid, each over all its connections."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from msgbus.drivers.base import Address, Delivery, Message, OnDelivery
from msgbus.drivers.qpid.codec import decode_message
from msgbus.drivers.qpid.engine import (
    ACCEPTED,
    MODIFIED,
    RELEASED,
    Condition,
    Engine,
    ReceivingLink,
    settle,
    was_aborted,
)
from msgbus.drivers.qpid.sender import NOT_FOUND, OnDeclared
from msgbus.drivers.qpid.topology import Source
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessagingException, TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

INBOX_CREDIT = 1000
"""How many messages may be on their way to an inbox; each that comes makes room for another."""
RESUBSCRIBE_DELAY = 1.0
"""Seconds before a subscription comes back whose queue was deleted, or whose link was closed, under it."""

Declare = Callable[[Source, OnDeclared], None]


class _Incoming(Delivery):
    __slots__ = ("_number", "_receiver")

    def __init__(
        self, address: Address, message: Message, redelivered: bool, attempts: int, receiver: _Receiver, number: int
    ) -> None:
        super().__init__(address, message, redelivered, attempts)
        self._receiver = receiver
        self._number = number

    def accept(self) -> bool:
        return self._receiver.settle(self._number, ACCEPTED)

    def reject(self, requeue: bool) -> None:
        # What is dropped is accepted: Qpid would move what is rejected to a queue for dead letters, if it has one.
        self._receiver.settle(self._number, MODIFIED if requeue else ACCEPTED)


class _Receiver(ReceivingLink):
    """One address's link on one connection. After a reconnect there is another: deliveries know theirs.

    Attributes:
        alive: deliveries of it can be settled.
        drained: the broker will send nothing more.
    """

    drained = False

    def __init__(self, consumer: Consumer, loop: Loop, address: Address) -> None:
        self._consumer = consumer
        self._loop = loop
        self._address = address
        self._auto_accept = consumer.auto_accept
        self._numbers = itertools.count()
        self._open: dict[int, Any] = {}
        self._to_grant = 0
        self._draining = False
        self.alive = True

    # Any thread

    def settle(self, number: int, outcome: int) -> bool:
        """Accept or give back a delivery. False: its connection is gone. A second word on it changes nothing."""
        if not self.alive:
            return False
        self._loop.call(self._settle, number, outcome)
        return True

    # On the loop's thread

    def _settle(self, number: int, outcome: int) -> None:
        if not self.alive or (delivery := self._open.pop(number, None)) is None:
            return
        settle(delivery, outcome, failed=outcome == MODIFIED)
        if not self._draining:
            self.flow(1)

    def on_attached(self) -> None:
        self._consumer.consuming(self)

    def on_delivery(self, delivery: Any) -> None:
        if was_aborted(delivery):
            settle(delivery)
            self.flow(1)
            return
        data = self.read(delivery)
        if data is None:
            return
        if self._draining:
            settle(delivery, RELEASED)  # As if it had never come: it is not counted either.
            return
        number = next(self._numbers)
        if self._auto_accept:
            settle(delivery)
            self._to_grant += 1
            if self._to_grant >= INBOX_CREDIT // 2:
                self.flow(self._to_grant)
                self._to_grant = 0
        else:
            self._open[number] = delivery
        try:
            got = decode_message(data)
        except ValueError as exc:
            LOG.error("%s: a message that nobody can read is dropped: %s", self._address, exc)
            self._settle(number, ACCEPTED)
            return
        # Of a message that has come in many frames, or waits here, its time is running.
        ttl = None if got.ttl is None else got.ttl / 1000
        message = Message(got.body, got.content_type, got.id, ttl, got.durable)
        count = got.delivery_count
        try:
            self._consumer.on_delivery(_Incoming(self._address, message, count > 0, count, self, number))
        except Exception:
            # What one message does to its reader may not cost the connection, and all else that is on it.
            LOG.exception("a message could not be handed over")

    def stop(self) -> None:
        """Ask for no more messages: those that are on their way are given back."""
        self._draining = True
        if self.credit > 0:
            self.drain()
        else:
            self._consumer.drained(self)

    def on_flow(self) -> None:
        if self._draining and self.credit == 0:
            self._consumer.drained(self)

    def on_detached(self, condition: Condition | None) -> None:
        self.end()
        self._consumer.detached(self, condition)

    def end(self) -> None:
        """No delivery of it can be settled any more."""
        self.alive = False
        self._open.clear()


class Consumer:
    """A subscription or an inbox over all its connections.

    Attributes:
        addresses: what it consumes from.
        on_delivery: what takes the deliveries.
        auto_accept: what was handed over counts as accepted: it is an inbox.
        ready: see the contract.
        gone: done when it is closed.
    """

    def __init__(
        self,
        loop: Loop,
        name: Callable[[], str],
        label: str,
        addresses: Sequence[Address],
        sources: Sequence[Source],
        on_delivery: OnDelivery,
        prefetch: int,
        declare: Declare | None,
        on_ready: Callable[[], None],
    ) -> None:
        """Make one that does not consume yet.

        Args:
            loop: whose thread does the work.
            name: of the broker, for texts.
            label: the beginning of its links' names, of its own.
            addresses: what it consumes from.
            sources: where each of these is.
            on_delivery: takes the deliveries.
            prefetch: see the contract; 0 makes it an inbox.
            declare: makes a node, and then says why it could not; None: nothing is declared.
            on_ready: called when it consumes from all addresses, each time.
        """
        self.addresses = tuple(addresses)
        self.on_delivery = on_delivery
        self.auto_accept = prefetch == 0
        self.ready: Future[None] = Future()
        self.gone: Future[None] = Future()
        self._loop = loop
        self._name = name
        self._label = label
        self._sources = tuple(sources)
        self._credit = prefetch or INBOX_CREDIT
        self._declare = declare
        self._on_ready = on_ready
        self._engine: Engine | None = None
        self._receivers: dict[int, _Receiver] = {}
        self._declared: set[int] = set()
        self._stopped: Future[None] = Future()
        self._stopping = False
        self._closing = False

    # On the loop's thread

    @property
    def is_consuming(self) -> bool:
        """Whether all addresses are consumed from at present."""
        return len(self._receivers) == len(self.addresses) and all(link.attached for link in self._receivers.values())

    @property
    def is_refused(self) -> bool:
        """Whether there is no hope that it will consume."""
        return self.ready.done() and self.ready.exception() is not None

    def start(self, engine: Engine) -> None:
        """The connection is open: declare and consume."""
        if self._stopping or self.gone.done():
            return
        self._engine = engine
        self._receivers = {}
        self._declared = set()
        for at in range(len(self.addresses)):
            self._begin(at, engine)

    def _begin(self, at: int, engine: Engine) -> None:
        source = self._sources[at]
        # A queue that the broker makes for the link needs an exchange, which is nearly always there.
        if self._declare is not None and source.queue is not None:
            self._declare_first(at, engine)
        else:
            self._attach(at, engine)

    def _declare_first(self, at: int, engine: Engine) -> None:
        assert self._declare is not None
        self._declared.add(at)
        self._declare(self._sources[at], lambda refusal: self._on_declared(at, engine, refusal))

    def _on_declared(self, at: int, engine: Engine, refusal: str | None) -> None:
        if engine is not self._engine or self._stopping:
            return
        if refusal is None:
            self._attach(at, engine)
        else:
            self._refused(f"{self._name()} refuses {self.addresses[at]}: {refusal}")

    def _attach(self, at: int, engine: Engine) -> None:
        receiver = _Receiver(self, self._loop, self.addresses[at])
        self._receivers[at] = receiver
        name = f"{self._label}.{at}"
        receiver.attach(engine, name, self._sources[at].address, self._credit, settled=self.auto_accept)

    def consuming(self, receiver: _Receiver) -> None:
        """One of the addresses is being consumed from."""
        if self._stopping:
            receiver.stop()  # It was asked for before the link was there.
        elif self.is_consuming:
            finish(self.ready, None)
            self._on_ready()

    def detached(self, receiver: _Receiver, condition: Condition | None) -> None:
        """A link was refused, or closed by either side."""
        at = next((at for at, known in self._receivers.items() if known is receiver), None)
        if at is None:
            return
        del self._receivers[at]
        if self._closing or self._stopping:
            self._check_ended()
            return
        engine = self._engine
        assert engine is not None
        missing = condition is not None and condition.name == NOT_FOUND
        if missing and self._declare is not None and at not in self._declared:
            self._declare_first(at, engine)
            return
        hint = ""
        if missing:
            hint = "; it is to be made beforehand (option declare)"
        elif condition is not None and condition.is_forbidden:
            hint = "; check the user's rights to consume, and to create the queue that the broker makes for it"
        reason = condition or "the link was closed"
        self._refused(f"{self._name()} refuses {self.addresses[at]}: {reason}{hint}", at)

    def _refused(self, reason: str, at: int = 0) -> None:
        if not (self.ready.done() and self.ready.exception() is None):
            fail(self.ready, TransportUnavailable(reason))
            self._on_ready()
            return
        LOG.error("%s; it is tried again in %g s", reason, RESUBSCRIBE_DELAY)
        engine = self._engine
        self._declared.discard(at)
        self._loop.call_later(RESUBSCRIBE_DELAY, lambda: self._begin_again(at, engine))

    def _begin_again(self, at: int, engine: Engine | None) -> None:
        if engine is not None and engine is self._engine and not self._stopping and at not in self._receivers:
            self._begin(at, engine)

    def stop(self) -> None:
        """Take no more deliveries; `stopped` is done at the end."""
        if self._stopping:
            return
        self._stopping = True
        for receiver in list(self._receivers.values()):
            if receiver.attached:
                receiver.stop()
        self._check_stopped()

    def drained(self, receiver: _Receiver) -> None:
        """The broker delivers no more from one of the addresses."""
        receiver.drained = True
        self._check_stopped()
        if self._closing:
            self._detach()

    def _check_stopped(self) -> None:
        if self._stopping and all(link.drained or not link.attached for link in self._receivers.values()):
            finish(self._stopped, None)

    def close(self) -> None:
        """Give back what is open, and detach."""
        self.stop()
        if not self._closing:
            self._closing = True
            self._detach()
            self._check_ended()

    def _detach(self) -> None:
        """Detach the links, once nothing is on its way over them: that would count as if it had been handed over."""
        for receiver in list(self._receivers.values()):
            if receiver.alive and (receiver.drained or self.auto_accept or not receiver.attached):
                receiver.end()
                receiver.detach()

    def _check_ended(self) -> None:
        self._check_stopped()
        if self._closing and not self._receivers:
            finish(self._stopped, None)
            finish(self.gone, None)

    def down(self) -> None:
        """The connection has broken."""
        for receiver in self._receivers.values():
            receiver.end()
        self._receivers = {}
        self._engine = None
        if self._stopping:
            finish(self._stopped, None)
        if self._closing:
            finish(self.gone, None)

    # Any thread

    @property
    def stopped(self) -> Future[None]:
        """The future of `stop`."""
        return self._stopped

    def refuse(self, error: MessagingException) -> None:
        """The driver is closed: nothing will ever come."""
        fail(self.ready, error)
        finish(self._stopped, None)
        finish(self.gone, None)

    def hopeless(self, error: MessagingException) -> None:
        """There will be no connection: nobody has to wait for one."""
        fail(self.ready, error)
