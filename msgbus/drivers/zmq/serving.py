"""An address that a node serves: its subscribers, the messages that wait for them, and their deliveries.

`ZmqDelivery` may be used by any thread; everything else here belongs to the loop's thread.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from msgbus.drivers.base import Address, Delivery, Message, OnDelivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.frames import Data, write_address
from msgbus.drivers.zmq.link import PeerLink


class Settling(Protocol):
    """What a delivery needs of the receiver when it is accepted or rejected. Any thread."""

    def settling_counts(self, link: PeerLink) -> bool:
        """Whether a message of this connection can be settled here."""

    def settle_later(self, consumer: LocalConsumer, delivery: ZmqDelivery, kind: int) -> None:
        """Send a receipt, and deliver what waits for room."""


class Received:
    """A message that was received.

    Attributes:
        link: the connection on which it was received.
        arrived: when, in seconds of `Loop.now`.
        redelivered: a subscriber may have had it before.
    """

    __slots__ = ("arrived", "data", "link", "redelivered")

    def __init__(self, link: PeerLink, data: Data) -> None:
        self.link = link
        self.data = data
        self.redelivered = bool(data.flags & frames.REDELIVERED)
        self.arrived = Loop.now()

    def message(self) -> Message:
        """The message, with the time that is left now."""
        data, ttl = self.data, self.data.ttl
        if ttl is not None:
            ttl -= Loop.now() - self.arrived
        return Message(data.body, data.content_type, data.id, ttl, bool(data.flags & frames.DURABLE))


class ZmqDelivery(Delivery):
    """See the contract.

    Attributes:
        counted: the result of `accept`, see `Settling.settling_counts`.
        delivered: the subscriber was called with it.
    """

    __slots__ = ("_consumer", "counted", "delivered", "received")

    def __init__(self, consumer: LocalConsumer, received: Received) -> None:
        super().__init__(consumer.address, received.message(), received.redelivered, None)
        self._consumer = consumer
        self.received = received
        self.counted = False
        self.delivered = False

    def accept(self) -> bool:
        return self._consumer.settle(self, frames.SETTLED)

    def reject(self, requeue: bool) -> None:
        self._consumer.settle(self, frames.REQUEUED if requeue else frames.SETTLED)


class LocalConsumer:
    """One address of a subscription.

    Attributes:
        served: the address, with all its subscribers.
        address: as it was subscribed to.
        unsettled: the deliveries that were neither accepted nor rejected.
        backlog: messages that wait for room; only of a fanout, whose copies are for this subscriber alone.
    """

    __slots__ = ("_loop", "_settling", "address", "backlog", "on_delivery", "prefetch", "served", "unsettled")

    def __init__(
        self,
        loop: Loop,
        settling: Settling,
        served: ServedAddress,
        address: Address,
        on_delivery: OnDelivery,
        prefetch: int,
    ) -> None:
        self._loop = loop
        self._settling = settling
        self.served = served
        self.address = address
        self.on_delivery = on_delivery
        self.prefetch = prefetch
        self.unsettled: dict[ZmqDelivery, None] = {}
        self.backlog: deque[Received] = deque()

    def settle(self, delivery: ZmqDelivery, kind: int) -> bool:
        """Accept or reject a delivery; only the first call counts. Any thread. Returns what `Delivery.accept` does."""
        try:
            del self.unsettled[delivery]
        except KeyError:
            return delivery.counted
        delivery.counted = self._settling.settling_counts(delivery.received.link)
        self._settling.settle_later(self, delivery, kind)
        return delivery.counted

    def deliver(self, received: Received) -> None:
        """Deliver a message to the subscriber, when all other work is done."""
        delivery = ZmqDelivery(self, received)
        self.unsettled[delivery] = None
        self._loop.call_last(self._call, delivery)

    def _call(self, delivery: ZmqDelivery) -> None:
        if delivery in self.unsettled:  # It may have been given back meanwhile.
            delivery.delivered = True
            self.on_delivery(delivery)


class ServedAddress:
    """An address that is served here.

    Attributes:
        address: that of a fanout is without server.
        consumers: its subscribers.
        backlog: messages that have a receipt, and wait until a subscriber has room.
        ready_for: the connections on which READY is sent when there is room; True where FULL was sent.
        refusing: the connections from which nothing is accepted until RESUME, so that the order is kept.
    """

    __slots__ = ("address", "backlog", "consumers", "ready_for", "refusing", "turn", "wire")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.wire = write_address(address)
        self.consumers: list[LocalConsumer] = []
        self.backlog: deque[Received] = deque()
        self.ready_for: dict[PeerLink, bool] = {}
        self.refusing: dict[PeerLink, None] = {}
        self.turn = 0

    def pick(self) -> LocalConsumer | None:
        """The subscriber with room that has the fewest messages, in turns."""
        best: LocalConsumer | None = None
        count = len(self.consumers)
        for step in range(count):
            at = (self.turn + step) % count
            consumer = self.consumers[at]
            held = len(consumer.unsettled)
            if held < consumer.prefetch and (best is None or held < len(best.unsettled)):
                best = consumer
                self.turn = at + 1
        return best


class InboxDelivery(Delivery):
    """A message to an inbox. It counts as accepted."""

    __slots__ = ()

    def accept(self) -> bool:
        return True

    def reject(self, requeue: bool) -> None:
        pass
