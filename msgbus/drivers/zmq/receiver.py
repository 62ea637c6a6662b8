"""The receiving half of a node: its subscriptions and inboxes, and what came for them and is not settled.

`ZmqDelivery` may be used by any thread; everything else here belongs to the loop's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from msgbus.drivers.base import Address, Delivery, Message, OnDelivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.frames import Data, write_address
from msgbus.drivers.zmq.link import Link
from msgbus.drivers.zmq.links import Links
from msgbus.drivers.zmq.matchmakers.base import Service
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

LIMBO = 0.2
"""Seconds after which it is known whether the process at the other end of a lost connection lives."""
LONG_LIMBO = 10.0
"""Seconds after which it is taken for dead if nobody can know. Its own patience is shorter: see `sender.py`."""

UNBEGUN_KEPT = 60.0
"""Seconds for which a sender can ask what became of the messages of a lost connection."""

Adopt = Callable[[Address, Message, bool], None]


class _Item:
    """A message that came."""

    __slots__ = ("data", "link", "redelivered", "since")

    def __init__(self, link: Link, data: Data) -> None:
        self.link = link
        self.data = data
        self.redelivered = bool(data.flags & frames.REDELIVERED)
        self.since = time.monotonic()

    def message(self) -> Message:
        """It, with the time that is left now."""
        data, ttl = self.data, self.data.ttl
        if ttl is not None:
            ttl -= time.monotonic() - self.since
        return Message(data.body, data.content_type, data.id, ttl, bool(data.flags & frames.DURABLE))


class ZmqDelivery(Delivery):
    """See the contract."""

    __slots__ = ("_consumer", "given", "heard", "item")

    def __init__(self, consumer: LocalConsumer, item: _Item) -> None:
        super().__init__(consumer.address, item.message(), item.redelivered, None)
        self._consumer = consumer
        self.item = item
        self.heard = False
        self.given = False

    def accept(self) -> bool:
        return self._consumer.settle(self, frames.SETTLED)

    def reject(self, requeue: bool) -> None:
        self._consumer.settle(self, frames.REQUEUED if requeue else frames.SETTLED)


class LocalConsumer:
    """One address of a subscription.

    Attributes:
        address: as it was subscribed to.
        open: what was handed over and not settled.
        backlog: of a fanout, which is for this one alone: what waits until there is room.
    """

    __slots__ = ("_receiver", "address", "backlog", "local", "on_delivery", "open", "prefetch")

    def __init__(
        self, receiver: Receiver, local: Local, address: Address, on_delivery: OnDelivery, prefetch: int
    ) -> None:
        self._receiver = receiver
        self.local = local
        self.address = address
        self.on_delivery = on_delivery
        self.prefetch = prefetch
        self.open: dict[ZmqDelivery, None] = {}
        self.backlog: deque[_Item] = deque()

    def settle(self, delivery: ZmqDelivery, kind: int) -> bool:
        """Any thread. The first word counts; returns what `Delivery.accept` does."""
        try:
            del self.open[delivery]
        except KeyError:
            return delivery.heard
        delivery.heard = self._receiver.is_heard(delivery.item.link)
        self._receiver.settle_later(self, delivery, kind)
        return delivery.heard

    def hand_over(self, item: _Item) -> None:
        """Give a message to the subscriber."""
        delivery = ZmqDelivery(self, item)
        self.open[delivery] = None
        self._receiver.loop.call_last(self._deliver, delivery)

    def _deliver(self, delivery: ZmqDelivery) -> None:
        if delivery in self.open:  # It may have been given back meanwhile.
            delivery.given = True
            self.on_delivery(delivery)


class Local:
    """An address that is served here.

    Attributes:
        address: a fanout's without server.
        consumers: its subscribers.
        backlog: what has a receipt, and waits until one of them has room.
        waiters: who is to be told when there is room; True where it was told that it is full here.
        refusing: from whom nothing is taken until it says RESUME, so that the order is kept.
    """

    __slots__ = ("address", "backlog", "consumers", "refusing", "turn", "waiters", "wire")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.wire = write_address(address)
        self.consumers: list[LocalConsumer] = []
        self.backlog: deque[_Item] = deque()
        self.waiters: dict[Link, bool] = {}
        self.refusing: dict[Link, None] = {}
        self.turn = 0

    def pick(self) -> LocalConsumer | None:
        """The subscriber with room that has the least to do, in turns."""
        best: LocalConsumer | None = None
        count = len(self.consumers)
        for step in range(count):
            at = (self.turn + step) % count
            consumer = self.consumers[at]
            held = len(consumer.open)
            if held < consumer.prefetch and (best is None or held < len(best.open)):
                best = consumer
                self.turn = at + 1
        return best


class Receiver:
    """See the module's text."""

    def __init__(
        self,
        loop: Loop,
        links: Links,
        is_alive: Callable[[str], bool | None],
        adopt: Adopt,
        backlog: int,
    ) -> None:
        """Make one.

        Args:
            loop: the thread.
            links: the connections.
            is_alive: whether a node's process lives, if that is known. Any thread.
            adopt: finds another server for a message whose sender is gone.
            backlog: how many messages wait for room at each address, besides those that are handed over.
        """
        self.loop = loop
        self._links = links
        self._is_alive = is_alive
        self._adopt = adopt
        self._backlog = backlog
        self._locals: dict[Address, Local] = {}
        self._inboxes: dict[Address, OnDelivery] = {}
        self._undecided: dict[int, tuple[Link, list[tuple[Local, _Item]]]] = {}
        self._unbegun: dict[int, tuple[str, list[int]]] = {}
        self._settled: deque[tuple[LocalConsumer, ZmqDelivery, int]] = deque()

    # Subscriptions and inboxes

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, prefetch: int) -> list[LocalConsumer]:
        """Serve addresses."""
        consumers = []
        for address in addresses:
            key = _key(address)
            local = self._locals.get(key)
            if local is None:
                local = self._locals[key] = Local(key)
            consumer = LocalConsumer(self, local, address, on_delivery, prefetch)
            local.consumers.append(consumer)
            consumers.append(consumer)
            self._pump(local)
        return consumers

    def open_inbox(self, address: Address, on_delivery: OnDelivery) -> None:
        """Take in what comes to an inbox."""
        self._inboxes[address] = on_delivery

    def close_inbox(self, address: Address) -> None:
        """Take in nothing more."""
        self._inboxes.pop(address, None)

    def services(self) -> list[Service]:
        """What others have to know of this node."""
        return [
            Service((*local.address,), len(local.consumers), sum(consumer.prefetch for consumer in local.consumers))
            for local in self._locals.values()
            if local.consumers
        ]

    def stop(self, consumers: Iterable[LocalConsumer]) -> None:
        """Hand nothing more over to these, and give back what waits where they were the last."""
        for consumer in consumers:
            local = consumer.local
            if consumer not in local.consumers:
                continue
            local.consumers.remove(consumer)
            consumer.backlog.clear()  # What is for it alone goes with it.
            if not local.consumers:
                backlog, local.backlog = local.backlog, deque()
                for item in backlog:
                    self._give_back(local.address, item, frames.RELEASED)
                if self._locals.get(local.address) is local:
                    del self._locals[local.address]

    def take_back(self, consumers: Iterable[LocalConsumer]) -> None:
        """Give back what was handed over to these and not settled."""
        for consumer in consumers:
            for delivery in list(consumer.open):
                if consumer.open.pop(delivery, self) is None and consumer.address.kind != "fanout":
                    kind = frames.REQUEUED if delivery.given else frames.RELEASED
                    self._give_back(consumer.local.address, delivery.item, kind)

    def _give_back(self, address: Address, item: _Item, kind: int) -> None:
        link = item.link
        if link.up:
            self._links.receipt(link, kind, item.data.seq)
        elif self.is_heard(link):
            self._adopt(address, item.message(), item.redelivered or kind == frames.REQUEUED)

    def is_heard(self, link: Link) -> bool:
        """Whether word of a message counts: its sender hears it, or is gone and will not send it again. Any thread."""
        return link.up or link.left or self._is_alive(link.node) is False

    # What comes

    def on_data(self, link: Link, data: Data) -> None:
        """DATA."""
        address = data.address
        kind = address.kind
        lazily = bool(data.flags & frames.PATIENT)
        if kind == "inbox":
            self._on_inbox(link, data, lazily)
            return
        local = self._locals.get(address)
        if local is None or not local.consumers:
            self._links.receipt(link, frames.NOBODY, data.seq)
        elif local.refusing and link in local.refusing:
            self._links.receipt(link, frames.FULL, data.seq)
        elif kind == "fanout":
            self._on_fanout(link, local, data)
        elif local.backlog or (consumer := local.pick()) is None:
            if len(local.backlog) < self._backlog:
                local.backlog.append(_Item(link, data))
                local.waiters.setdefault(link, False)
                self._links.receipt(link, frames.QUEUED, data.seq)
            else:
                self._refuse(link, local, data.seq)
        else:
            self._links.receipt(link, frames.TAKEN, data.seq, lazily=lazily)
            consumer.hand_over(_Item(link, data))

    def _refuse(self, link: Link, local: Local, seq: int) -> None:
        local.waiters[link] = True
        local.refusing[link] = None
        self._links.receipt(link, frames.FULL, seq)

    def _on_inbox(self, link: Link, data: Data, lazily: bool) -> None:
        on_delivery = self._inboxes.get(data.address)
        if on_delivery is None:
            self._links.receipt(link, frames.NOBODY, data.seq)
            return
        self._links.receipt(link, frames.TAKEN, data.seq, lazily=lazily)
        delivery = _InboxDelivery(data.address, _Item(link, data).message(), False, None)
        self.loop.call_last(on_delivery, delivery)

    def _on_fanout(self, link: Link, local: Local, data: Data) -> None:
        if any(len(consumer.backlog) >= self._backlog for consumer in local.consumers):
            self._refuse(link, local, data.seq)
            return
        self._links.receipt(link, frames.REACHED, data.seq, len(local.consumers))
        for consumer in list(local.consumers):
            item = _Item(link, data)
            if consumer.backlog or len(consumer.open) >= consumer.prefetch:
                consumer.backlog.append(item)
            else:
                consumer.hand_over(item)

    def on_resume(self, link: Link, address: Address) -> None:
        """RESUME."""
        local = self._locals.get(address)
        if local is not None:
            local.refusing.pop(link, None)

    def on_recall(self, link: Link, count: int, address: Address) -> None:
        """RECALL: give back what waits, the youngest first."""
        local = self._locals.get(address)
        if local is not None:
            kept: deque[_Item] = deque()
            while local.backlog and count > 0:
                item = local.backlog.pop()
                if item.link is link:
                    self._links.receipt(link, frames.RELEASED, item.data.seq)
                    count -= 1
                else:
                    kept.appendleft(item)
            local.backlog.extend(kept)
            local.waiters.setdefault(link, False)
        self._links.send(link, frames.numbered(frames.RECALLED, count, write_address(address)))

    def depth(self, address: Address) -> tuple[int, int]:
        """How many subscribe here, and how many messages wait."""
        local = self._locals.get(address)
        return (0, 0) if local is None else (len(local.consumers), len(local.backlog))

    # Settling

    def settle_later(self, consumer: LocalConsumer, delivery: ZmqDelivery, kind: int) -> None:
        """Any thread: a subscriber has said what becomes of a delivery."""
        self._settled.append((consumer, delivery, kind))
        local = consumer.local
        if kind == frames.REQUEUED or local.backlog or local.waiters or consumer.backlog:
            self.loop.call(self._settle)
        else:
            self.loop.call_lazily(self._settle)

    def _settle(self) -> None:
        settled = self._settled
        touched: dict[Local, None] = {}
        while settled:
            consumer, delivery, kind = settled.popleft()
            item = delivery.item
            touched[consumer.local] = None
            if consumer.address.kind == "fanout":
                if kind == frames.REQUEUED and consumer in consumer.local.consumers:
                    item.redelivered = True
                    consumer.backlog.appendleft(item)
            elif item.link.up:
                self._links.receipt(item.link, kind, item.data.seq, lazily=kind == frames.SETTLED)
            elif kind == frames.REQUEUED:
                self._give_back(consumer.local.address, item, kind)
        for local in touched:
            self._pump(local)

    def _pump(self, local: Local) -> None:
        """Hand over what waits, as far as there is room, and tell who waits for room."""
        if local.address.kind == "fanout":
            for consumer in list(local.consumers):
                while consumer.backlog and len(consumer.open) < consumer.prefetch:
                    consumer.hand_over(consumer.backlog.popleft())
            if local.waiters and all(len(c.backlog) <= self._backlog // 2 for c in local.consumers):
                self._tell(local, 1)
            return
        while local.backlog and (consumer_with_room := local.pick()) is not None:
            consumer_with_room.hand_over(local.backlog.popleft())
        if not local.waiters:
            return
        if not local.backlog and local.pick() is not None:
            self._tell(local, 1)
        elif len(local.backlog) <= self._backlog // 2 and any(local.waiters.values()):
            self._tell(local, 0)

    def _tell(self, local: Local, room: int) -> None:
        ready = frames.numbered(frames.READY, room, local.wire)
        for link, full in list(local.waiters.items()):
            if room:
                del local.waiters[link]
            elif full:
                local.waiters[link] = False
            else:
                continue
            if link.up:
                self._links.send(link, ready)

    # Connections

    def on_link_down(self, link: Link) -> None:
        """What a sender still has it gives to others; what a dead one had is nowhere else."""
        undecided: list[tuple[Local, _Item]] = []
        for local in self._locals.values():
            local.waiters.pop(link, None)
            local.refusing.pop(link, None)
            if not link.left and any(item.link is link for item in local.backlog):
                undecided += [(local, item) for item in local.backlog if item.link is link]
                local.backlog = deque(item for item in local.backlog if item.link is not link)
        if not link.left and link.twin is None:
            self._undecided[link.session] = (link, undecided)
            self.loop.call_later(LIMBO, lambda: self._find_out(link))

    def _find_out(self, link: Link) -> None:
        alive = self._is_alive(link.node)
        if alive is None:
            # It would have said LOST by the end of that. What it has given to others by then, it has marked.
            self.loop.call_later(LONG_LIMBO, lambda: self._decide(link.session, alive=False))
        else:
            self._decide(link.session, alive)

    def _decide(self, session: int, alive: bool) -> None:
        link, items = self._undecided.pop(session, (None, []))
        if link is None:
            return
        if alive:
            self._let_go(link, items)
            return
        link.left = True  # From now on what is said of its messages counts: nobody else has them.
        for local, item in items:
            if local.consumers:
                local.backlog.append(item)
                self._pump(local)
            else:
                self._adopt(local.address, item.message(), item.redelivered)

    def _let_go(self, link: Link, items: list[tuple[Local, _Item]]) -> None:
        """The sender lives, and gives to others what it sent over the connection that broke."""
        if items:
            self._unbegun[link.session] = (link.node, [item.data.seq for _, item in items])
            self.loop.call_later(UNBEGUN_KEPT, lambda: self._forget(link.session))
        for local in list(self._locals.values()):
            if local.address.kind == "fanout":
                continue  # That is for this node alone, and here it stays.
            for consumer in local.consumers:
                # It holds no room of the prefetch any more; its subscriber will learn that his word does not count.
                for delivery in [delivery for delivery in list(consumer.open) if delivery.item.link is link]:
                    consumer.open.pop(delivery, None)
            self._pump(local)

    def _forget(self, session: int) -> None:
        self._unbegun.pop(session, None)

    def on_lost(self, link: Link, session: int) -> None:
        """LOST: tell which messages no subscriber had."""
        for other in self._links.all():
            if other.session == session and other.node == link.node and other is not link and other.twin is None:
                self._links.drop(other, "the other side says that it is lost")
        undecided = self._undecided.get(session)
        if undecided is not None and undecided[0].node == link.node:
            self._decide(session, True)
        node, unbegun = self._unbegun.get(session, ("", []))
        self._links.send(link, frames.numbers(frames.UNBEGUN, [session, *(unbegun if node == link.node else [])]))


class _InboxDelivery(Delivery):
    """It counts as accepted."""

    __slots__ = ()

    def accept(self) -> bool:
        return True

    def reject(self, requeue: bool) -> None:
        pass


def _key(address: Address) -> Address:
    return address._replace(server="") if address.kind == "fanout" else address
