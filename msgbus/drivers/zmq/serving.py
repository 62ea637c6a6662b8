"""An address that a node serves: its subscribers, the messages that wait for them, and their deliveries.

`ZmqDelivery` may be used by any thread; everything else here belongs to the loop's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from msgbus.drivers.base import Address, Delivery, OnDelivery
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.frames import Data
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.matchmakers.base import Service


class ZmqDelivery(Delivery):
    """See the contract.

    Attributes:
        counted: the result of `accept`.
        delivered: the subscriber was called with it.
    """

    __slots__ = ("_settle", "consumer", "counted", "data", "delivered")

    def __init__(self, settle: Callable[[ZmqDelivery, int], bool], consumer: LocalConsumer, data: Data) -> None:
        """`settle` is that of the receiver."""
        super().__init__(consumer.address, data.message, data.redelivered, None)
        self._settle = settle
        self.consumer = consumer
        self.data = data
        self.counted = False
        self.delivered = False

    def accept(self) -> bool:
        return self._settle(self, frames.SETTLED)

    def reject(self, requeue: bool) -> None:
        self._settle(self, frames.REQUEUED if requeue else frames.SETTLED)


@dataclass(eq=False, repr=False, slots=True)
class LocalConsumer:
    """One address of a subscription.

    Attributes:
        served: the address, with all its subscribers.
        address: as it was subscribed to.
        unsettled: the deliveries that were neither accepted nor rejected.
        backlog: messages that wait for room; only of a fanout, whose copies are for this subscriber alone.
    """

    served: ServedAddress
    address: Address
    on_delivery: OnDelivery
    prefetch: int
    unsettled: dict[ZmqDelivery, None] = field(default_factory=dict)
    backlog: deque[Data] = field(default_factory=deque)


@dataclass(eq=False, repr=False, slots=True)
class ServedAddress:
    """An address that is served here.

    Attributes:
        address: that of a fanout is without server.
        consumers: its subscribers. `add` and `remove` change them.
        service: what other nodes know of them. It is kept, since a node may serve thousands of addresses, and its
            entry has all of them.
        backlog: messages that have a receipt, and wait until a subscriber has room.
        ready_for: the connections on which READY is sent when there is room; True where FULL was sent.
        refusing: the connections from which nothing is accepted until RESUME, so that the order is kept.
        turn: which subscriber is asked first for room.
    """

    address: Address
    consumers: list[LocalConsumer] = field(default_factory=list)
    service: Service | None = None
    backlog: deque[Data] = field(default_factory=deque)
    ready_for: dict[PeerLink, bool] = field(default_factory=dict)
    refusing: dict[PeerLink, None] = field(default_factory=dict)
    turn: int = 0

    def add(self, consumer: LocalConsumer) -> None:
        """A subscriber has come."""
        self.consumers.append(consumer)
        self._describe()

    def remove(self, consumer: LocalConsumer) -> None:
        """A subscriber has left."""
        self.consumers.remove(consumer)
        self._describe()

    def _describe(self) -> None:
        prefetch = sum(consumer.prefetch for consumer in self.consumers)
        self.service = Service((*self.address,), len(self.consumers), prefetch) if self.consumers else None

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
