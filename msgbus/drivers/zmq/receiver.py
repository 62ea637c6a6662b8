"""The receiving half of a node: delivers messages to its subscriptions and inboxes, and sends receipts for them.

Everything here belongs to the loop's thread, unless a method says otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from msgbus.drivers.base import Address, Message, OnDelivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.frames import Data, write_address
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.links import Links
from msgbus.drivers.zmq.matchmakers.base import Matchmaker, Service
from msgbus.drivers.zmq.serving import InboxDelivery, LocalConsumer, ServedAddress, ZmqDelivery

SENDER_CHECK_DELAY = 0.2
"""Seconds after a connection was lost until it is known whether the process at its other end lives."""
SENDER_DEAD_AFTER = 10.0
"""Seconds after which that process counts as dead, if this cannot be known. It must be longer than
`msgbus.drivers.zmq.lost.ANSWER_TIMEOUT`: by then a sender that lives has sent its messages to others."""
UNBEGUN_KEPT = 60.0
"""Seconds for which a sender can ask which messages of a lost connection had not reached a subscriber."""

Reroute = Callable[[Address, Message, bool], None]


class ZmqReceiver:
    """See the module's text."""

    def __init__(self, loop: Loop, links: Links, matchmaker: Matchmaker, reroute: Reroute, backlog: int) -> None:
        """Make one.

        Args:
            loop: the transport's.
            links: the connections.
            matchmaker: says whether a node's process lives.
            reroute: finds another server for a message whose sender is dead.
            backlog: how many messages wait for room at each address, besides those that subscribers have.
        """
        self._loop = loop
        self._links = links
        self._is_alive = matchmaker.is_alive
        self._reroute = reroute
        self._backlog = backlog
        self._served: dict[Address, ServedAddress] = {}
        self._inboxes: dict[Address, OnDelivery] = {}
        # By session: a lost connection whose sender may still live, and its messages that no subscriber had.
        self._undecided: dict[int, tuple[PeerLink, list[tuple[ServedAddress, Data]]]] = {}
        self._unbegun: dict[int, tuple[str, list[int]]] = {}  # by session: the sender, and the answer to LOST
        self._settled: deque[tuple[ZmqDelivery, int]] = deque()
        self._will_settle = False  # `_settle_all` will be called, and has not begun
        links.on_record |= {
            frames.DATA: self._on_data,
            frames.RECALL: self._on_recall,
            frames.RESUME: self._on_resume,
            frames.LOST: self._on_lost,
            frames.INSPECT: self._on_inspect,
        }

    # Subscriptions and inboxes

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, prefetch: int) -> list[LocalConsumer]:
        """Serve addresses."""
        consumers = []
        for address in addresses:
            key = address._replace(server="") if address.kind == "fanout" else address
            served = self._served.get(key)
            if served is None:
                served = self._served[key] = ServedAddress(key)
            consumer = LocalConsumer(served, address, on_delivery, prefetch)
            served.add(consumer)
            consumers.append(consumer)
            self._deliver_waiting(served)
        return consumers

    def open_inbox(self, address: Address, on_delivery: OnDelivery) -> None:
        """Accept messages to an inbox."""
        self._inboxes[address] = on_delivery

    def close_inbox(self, address: Address) -> None:
        """Accept no more messages to an inbox."""
        self._inboxes.pop(address, None)

    def services(self) -> list[Service]:
        """The services of this node's entry."""
        return [served.service for served in self._served.values() if served.service is not None]

    def stop(self, consumers: Iterable[LocalConsumer]) -> None:
        """Stop delivering to these consumers. Give back the waiting messages of addresses that lose their last one."""
        for consumer in consumers:
            served = consumer.served
            if consumer not in served.consumers:
                continue
            served.remove(consumer)
            consumer.backlog.clear()  # It was for this subscriber alone.
            if not served.consumers:
                backlog, served.backlog = served.backlog, deque()
                for data in backlog:
                    self._give_back(served.address, data, frames.RELEASED)
                if self._served.get(served.address) is served:
                    del self._served[served.address]

    def take_back(self, consumers: Iterable[LocalConsumer]) -> None:
        """Give back the unsettled messages of these consumers."""
        for consumer in consumers:
            for delivery in list(consumer.unsettled):
                if consumer.unsettled.pop(delivery, self) is None and consumer.address.kind != "fanout":
                    kind = frames.REQUEUED if delivery.delivered else frames.RELEASED
                    self._give_back(consumer.served.address, delivery.data, kind)

    def _give_back(self, address: Address, data: Data, kind: int) -> None:
        link: PeerLink = data.link
        if link.up:
            self._links.receipt(link, kind, data.seq)
        elif self._has_no_sender(link):
            self._reroute(address, data.aged().message, data.redelivered or kind == frames.REQUEUED)

    def _has_no_sender(self, link: PeerLink) -> bool:
        """Whether nobody will send the messages of this lost connection to another node. Any thread."""
        return link.peer_left or self._is_alive(link.node) is False

    # Messages

    def _on_data(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        data = frames.read_data(frame, at, end)
        data.link = link
        address, receipt = data.address, self._links.receipt
        lazily = bool(data.flags & frames.LAZY_RECEIPT)
        if address.kind == "inbox":
            on_delivery = self._inboxes.get(address)
            if on_delivery is None:
                receipt(link, frames.NOBODY, data.seq)
            else:
                receipt(link, frames.TAKEN, data.seq, lazily=lazily)
                self._loop.call_last(on_delivery, InboxDelivery(address, data.message, False, None))
            return
        served = self._served.get(address)
        if served is None or not served.consumers:
            receipt(link, frames.NOBODY, data.seq)
        elif served.refusing and link in served.refusing:
            receipt(link, frames.FULL, data.seq)
        elif address.kind == "fanout":
            self._on_fanout(link, served, data)
        elif served.backlog or (consumer := served.pick()) is None:
            if len(served.backlog) < self._backlog:
                served.backlog.append(data)
                served.ready_for.setdefault(link, False)
                receipt(link, frames.QUEUED, data.seq)
            else:
                self._refuse(link, served, data.seq)
        else:
            receipt(link, frames.TAKEN, data.seq, lazily=lazily)
            self._deliver(consumer, data)

    def _deliver(self, consumer: LocalConsumer, data: Data) -> None:
        """Deliver a message to a subscriber, when all other work is done."""
        delivery = ZmqDelivery(self._settle, consumer, data)
        consumer.unsettled[delivery] = None
        self._loop.call_last(_call, delivery)

    def _refuse(self, link: PeerLink, served: ServedAddress, seq: int) -> None:
        served.ready_for[link] = True
        served.refusing[link] = None
        self._links.receipt(link, frames.FULL, seq)

    def _on_fanout(self, link: PeerLink, served: ServedAddress, data: Data) -> None:
        if any(len(consumer.backlog) >= self._backlog for consumer in served.consumers):
            self._refuse(link, served, data.seq)
            return
        self._links.receipt(link, frames.REACHED, data.seq, len(served.consumers))
        for consumer in list(served.consumers):
            own = msgspec.structs.replace(data)  # Each subscriber may give its own back.
            if consumer.backlog or len(consumer.unsettled) >= consumer.prefetch:
                consumer.backlog.append(own)
            else:
                self._deliver(consumer, own)

    def _on_resume(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        served = self._served.get(frames.read_address(frame[at:end]))
        if served is not None:
            served.refusing.pop(link, None)

    def _on_recall(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        """Give back waiting messages, the youngest first."""
        count, address = frames.read_numbered(frame, at, end)
        served = self._served.get(address)
        if served is not None:
            kept: deque[Data] = deque()
            while served.backlog and count > 0:
                data = served.backlog.pop()
                if data.link is link:
                    self._links.receipt(link, frames.RELEASED, data.seq)
                    count -= 1
                else:
                    kept.appendleft(data)
            served.backlog.extend(kept)
            served.ready_for.setdefault(link, False)
        self._links.send(link, frames.numbered(frames.RECALLED, count, write_address(address)))

    def _on_inspect(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        """Answer how many subscribe here, and how many messages wait."""
        number, address = frames.read_numbered(frame, at, end)
        served = self._served.get(address)
        consumers, waiting = (0, 0) if served is None else (len(served.consumers), len(served.backlog))
        self._links.send(link, frames.depth(number, consumers, waiting))

    # Settling

    def _settle(self, delivery: ZmqDelivery, kind: int) -> bool:
        """Accept or reject a delivery; only the first call counts. Any thread. Returns what `Delivery.accept` does."""
        consumer, link = delivery.consumer, delivery.data.link
        try:
            del consumer.unsettled[delivery]
        except KeyError:
            return delivery.counted
        # Else the sender will send it to another node, and there is nobody to get a receipt.
        delivery.counted = link.up or self._has_no_sender(link)
        self._settled.append((delivery, kind))
        served = consumer.served
        if kind == frames.REQUEUED or served.backlog or served.ready_for or consumer.backlog:
            self._loop.call(self._settle_all)
        elif not self._will_settle:
            self._will_settle = True
            self._loop.call_lazily(self._settle_all)
        return delivery.counted

    def _settle_all(self) -> None:
        self._will_settle = False  # First: what is added from now on calls again.
        settled = self._settled
        touched: dict[ServedAddress, None] = {}
        while settled:
            delivery, kind = settled.popleft()
            data, consumer = delivery.data, delivery.consumer
            served = consumer.served
            link: PeerLink = data.link
            if served.backlog or served.ready_for or served.address.kind == "fanout":
                touched[served] = None
            if served.address.kind == "fanout":
                if kind == frames.REQUEUED and consumer in served.consumers:
                    data.redelivered = True
                    consumer.backlog.appendleft(data)
            elif link.up:
                self._links.receipt(link, kind, data.seq, lazily=kind == frames.SETTLED)
            elif kind == frames.REQUEUED:
                self._give_back(served.address, data, kind)
        for served in touched:
            self._deliver_waiting(served)

    def _deliver_waiting(self, served: ServedAddress) -> None:
        """Deliver waiting messages, as far as there is room, and send READY to senders that wait for room."""
        if served.address.kind == "fanout":
            for consumer in list(served.consumers):
                while consumer.backlog and len(consumer.unsettled) < consumer.prefetch:
                    self._deliver(consumer, consumer.backlog.popleft().aged())
            if served.ready_for and all(len(c.backlog) <= self._backlog // 2 for c in served.consumers):
                self._send_ready(served, 1)
            return
        while served.backlog and (with_room := served.pick()) is not None:
            self._deliver(with_room, served.backlog.popleft().aged())
        if not served.ready_for:
            return
        if not served.backlog and served.pick() is not None:
            self._send_ready(served, 1)
        elif len(served.backlog) <= self._backlog // 2 and any(served.ready_for.values()):
            self._send_ready(served, 0)

    def _send_ready(self, served: ServedAddress, room: int) -> None:
        ready = frames.numbered(frames.READY, room, write_address(served.address))
        for link, full in list(served.ready_for.items()):
            if room:
                del served.ready_for[link]
            elif full:
                served.ready_for[link] = False
            else:
                continue
            if link.up:
                self._links.send(link, ready)

    # Lost connections

    def on_link_down(self, link: PeerLink) -> None:
        """Set the waiting messages of this connection aside, until it is known whether their sender lives."""
        undecided: list[tuple[ServedAddress, Data]] = []
        for served in self._served.values():
            served.ready_for.pop(link, None)
            served.refusing.pop(link, None)
            if not link.peer_left and any(data.link is link for data in served.backlog):
                undecided += [(served, data) for data in served.backlog if data.link is link]
                served.backlog = deque(data for data in served.backlog if data.link is not link)
        if not link.peer_left and link.loopback is None:
            self._undecided[link.session] = (link, undecided)
            self._loop.call_later(SENDER_CHECK_DELAY, self._check_sender, link)

    def _check_sender(self, link: PeerLink) -> None:
        alive = self._is_alive(link.node)
        if alive is None:
            self._loop.call_later(SENDER_DEAD_AFTER, self._decide, link.session, False)
        else:
            self._decide(link.session, alive)

    def _decide(self, session: int, alive: bool) -> None:
        """A live sender reroutes its own messages, so drop ours. For a dead sender ours are the only copies."""
        link, waiting = self._undecided.pop(session, (None, []))
        if link is None:
            return
        if alive:
            self._drop(link, waiting)
            return
        link.peer_left = True  # From now on its messages can be settled here.
        for served, data in waiting:
            if served.consumers:
                served.backlog.append(data)
                self._deliver_waiting(served)
            else:
                self._reroute(served.address, data.aged().message, data.redelivered)

    def _drop(self, link: PeerLink, waiting: list[tuple[ServedAddress, Data]]) -> None:
        """Drop the messages of a lost connection whose sender lives, and note which of them no subscriber had."""
        if waiting:
            self._unbegun[link.session] = (link.node, [data.seq for _, data in waiting])
            self._loop.call_later(UNBEGUN_KEPT, self._unbegun.pop, link.session, None)
        for served in list(self._served.values()):
            if served.address.kind == "fanout":
                continue  # Its copy is for this node alone, and stays.
            for consumer in served.consumers:
                # It does not count for the prefetch any more; `accept` will return False.
                for delivery in [delivery for delivery in list(consumer.unsettled) if delivery.data.link is link]:
                    consumer.unsettled.pop(delivery, None)
            self._deliver_waiting(served)

    def _on_lost(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        for session in frames.read_numbers(frame, at, end):
            self._answer_lost(link, session)

    def _answer_lost(self, link: PeerLink, session: int) -> None:
        """Answer which messages of a lost connection no subscriber had."""
        for other in self._links.all():
            if other.session == session and other.node == link.node and other is not link and other.loopback is None:
                self._links.drop(other, "the other side has lost it")
        undecided = self._undecided.get(session)
        if undecided is not None and undecided[0].node == link.node:
            self._decide(session, True)
        node, unbegun = self._unbegun.get(session, ("", []))
        self._links.send(link, frames.numbers(frames.UNBEGUN, [session, *(unbegun if node == link.node else [])]))


def _call(delivery: ZmqDelivery) -> None:
    if delivery in delivery.consumer.unsettled:  # It may have been given back meanwhile.
        delivery.delivered = True
        delivery.consumer.on_delivery(delivery)
