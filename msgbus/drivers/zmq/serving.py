"""An address that a node serves: its subscribers, the messages that wait for them, and their deliveries.

`ZmqDelivery` may be used by any thread; everything else here belongs to the loop's thread.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgbus.drivers.base import Address, Delivery, OnDelivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.frames import Data
from msgbus.drivers.zmq.link import PeerLink

if TYPE_CHECKING:
    from msgbus.drivers.zmq.receiver import ZmqReceiver


class ZmqDelivery(Delivery):
    """See the contract.

    Attributes:
        counted: the result of `accept`, see `ZmqReceiver.settling_counts`.
        delivered: the subscriber was called with it.
    """

    __slots__ = ("_consumer", "counted", "data", "delivered")

    def __init__(self, consumer: LocalConsumer, data: Data) -> None:
        super().__init__(consumer.address, data.message, data.redelivered, None)
        self._consumer = consumer
        self.data = data
        self.counted = False
        self.delivered = False

    def accept(self) -> bool:
        return self._consumer.settle(self, frames.SETTLED)

    def reject(self, requeue: bool) -> None:
        self._consumer.settle(self, frames.REQUEUED if requeue else frames.SETTLED)


@dataclass(eq=False, repr=False, slots=True)
class LocalConsumer:
    """One address of a subscription.

    Attributes:
        served: the address, with all its subscribers.
        address: as it was subscribed to.
        unsettled: the deliveries that were neither accepted nor rejected.
        backlog: messages that wait for room; only of a fanout, whose copies are for this subscriber alone.
    """

    _loop: Loop
    _receiver: ZmqReceiver
    served: ServedAddress
    address: Address
    on_delivery: OnDelivery
    prefetch: int
    unsettled: dict[ZmqDelivery, None] = field(default_factory=dict)
    backlog: deque[Data] = field(default_factory=deque)

    def settle(self, delivery: ZmqDelivery, kind: int) -> bool:
        """Accept or reject a delivery; only the first call counts. Any thread. Returns what `Delivery.accept` does."""
        try:
            del self.unsettled[delivery]
        except KeyError:
            return delivery.counted
        link: PeerLink = delivery.data.link
        delivery.counted = link.up or self._receiver.settling_counts(link)
        self._receiver.settle_later(self, delivery, kind)
        return delivery.counted

    def deliver(self, data: Data) -> None:
        """Deliver a message to the subscriber, when all other work is done."""
        delivery = ZmqDelivery(self, data)
        self.unsettled[delivery] = None
        self._loop.call_last(self._call, delivery)

    def _call(self, delivery: ZmqDelivery) -> None:
        if delivery in self.unsettled:  # It may have been given back meanwhile.
            delivery.delivered = True
            self.on_delivery(delivery)


@dataclass(eq=False, repr=False, slots=True)
class ServedAddress:
    """An address that is served here.

    Attributes:
        address: that of a fanout is without server.
        consumers: its subscribers.
        backlog: messages that have a receipt, and wait until a subscriber has room.
        ready_for: the connections on which READY is sent when there is room; True where FULL was sent.
        refusing: the connections from which nothing is accepted until RESUME, so that the order is kept.
        turn: which subscriber is asked first for room.
    """

    address: Address
    consumers: list[LocalConsumer] = field(default_factory=list)
    backlog: deque[Data] = field(default_factory=deque)
    ready_for: dict[PeerLink, bool] = field(default_factory=dict)
    refusing: dict[PeerLink, None] = field(default_factory=dict)
    turn: int = 0

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
