"""The sending half of a node: for its own messages it does what a broker would do.

It keeps each message until the node that got it reports that it is settled, sends it to another node if that one dies
or gives it back, and recalls messages from a busy node that an idle one could run.

Everything here belongs to the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.toolkit.futures import done, fail, finish
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.link import WINDOW, WINDOW_MESSAGES, PeerLink
from msgbus.drivers.zmq.lost import LostLinks
from msgbus.drivers.zmq.matchmakers.base import Matchmaker
from msgbus.drivers.zmq.queue import Parcel, Queue, Receipts, RemoteConsumer
from msgbus.drivers.zmq.receipts import ReceiptReader
from msgbus.drivers.zmq.routing import Router
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessageTooLarge,
    MessageUndeliverable,
    TransportBlocked,
    TransportUnavailable,
)
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

TICK = 0.05
"""Seconds between two checks of messages that wait for a server."""
CHECK_INTERVAL = 0.01
"""The least seconds between two checks of messages without a receipt."""


class ZmqSender:
    """See the module's text."""

    def __init__(
        self,
        loop: Loop,
        router: Router,
        refresh: Callable[[], None],
        matchmaker: Matchmaker,
        server_expires: float,
    ) -> None:
        """Make one.

        Args:
            loop: the transport's.
            router: the queues of each address.
            refresh: brings the directory up to date.
            matchmaker: says whether a node's process lives, and whether there may be nodes that are not known.
            server_expires: seconds for which a message without ttl is kept after its server has died.
        """
        self._loop = loop
        self._links = router.links
        self._directory = router.directory
        self._refresh = refresh
        self._matchmaker = matchmaker
        self._server_expires = server_expires
        self._router = router
        self._queues = router.queues
        self._unrouted: list[Parcel] = []  # without a known server, kept until it is certain that there is none
        self._receipts = ReceiptReader(router, server_expires)
        self._returned = self._receipts.returned
        self._lost = LostLinks(router, matchmaker, self._receipts.give_back)
        self._waiting: dict[Queue, None] = {}  # queues in which something waits
        self._number = 0
        self._is_ticking = False
        self._is_leaving = False
        self._next_check = FOREVER

    # Sending

    def send(self, parcel: Parcel, again: bool = False) -> None:
        """Send a message, or keep it until a node can take it. `again`: it was kept.

        The directory is up to date. For an inbox it need not be: that is brought up to date if the inbox is not known.
        """
        if parcel.sent.done():
            return
        address = parcel.address
        if self._matchmaker.is_opening and not self._is_connected(address):
            self._keep(parcel)  # The directory is not complete yet.
            return
        queues = self._router.route(address)
        if not queues and address.kind == "inbox" and not again:
            self._refresh()
            queues = self._router.route(address)
        if not queues:
            if self._may_be_served(parcel):
                self._keep(parcel)
            else:
                self._fail_undeliverable(parcel)
            return
        if len(queues) > 1:
            parcel.receipts = Receipts(len(queues))
            for queue in queues[1:]:
                self._put(queue, parcel.copy())
        self._put(queues[0], parcel)

    def _keep(self, parcel: Parcel) -> None:
        self._unrouted.append(parcel)
        self._tick_soon()

    def _may_be_served(self, parcel: Parcel) -> bool:
        """Whether there may be a server that is not known yet. Asks the matchmaker to check, once for each message."""
        matchmaker = self._matchmaker
        if parcel.address.kind != "inbox" and matchmaker.why_incomplete():
            return True
        if parcel.recheck < 0:
            parcel.recheck = matchmaker.recheck()
        return parcel.recheck > matchmaker.rechecked

    def _is_connected(self, address: Address) -> bool:
        """Whether it is an inbox to whose node there is a connection: that is enough, whatever the directory says."""
        return address.kind == "inbox" and self._links.link(address.name.partition(".")[0]) is not None

    def send_unrouted(self) -> None:
        """Send the messages again that had no known server: there may be more nodes in the directory now."""
        parcels, self._unrouted = self._unrouted, []
        for parcel in parcels:
            self.send(parcel, again=True)

    def reroute(self, address: Address, message: Message, redelivered: bool) -> None:
        """Find another server for a message that a subscriber of this node gives back, and whose sender is dead."""
        parcel = Parcel(address, message, False, done(Sent()))
        parcel.redelivered = redelivered
        parcel.taken = True
        parcel.send_until = min(parcel.expires, Loop.now() + self._server_expires)
        self._put(self._router.queue(address, ""), parcel)

    def _put(self, queue: Queue, parcel: Parcel) -> None:
        self._number += 1
        parcel.number = self._number
        parcel.queue = queue
        if not queue.waiting:
            consumer = queue.pick()
            if consumer is not None:
                self._send_to(consumer, parcel)
                return
        queue.waiting.append(parcel)
        self._send_waiting(queue)

    def _send_to(self, consumer: RemoteConsumer, parcel: Parcel) -> None:
        """Send a message to the node that was picked for it."""
        message, link, wire = parcel.message, consumer.link, consumer.queue.wire
        assert link is not None
        if len(message.body) > link.largest:
            text = (
                f"a message of {len(message.body)} bytes to {parcel.address}; node {link.node} takes at most "
                f"{link.largest} bytes (its option max_message_size of [msgbus_zmq])"
            )
            self._fail(parcel, MessageTooLarge(text))
            return
        seq = next(link.numbers)
        flags = frames.REDELIVERED if parcel.redelivered else 0
        ttl = None
        if message.ttl is not None:
            ttl = parcel.expires - Loop.now()
            if message.send_timeout is None or parcel.send_until < parcel.expires:
                flags |= frames.LAZY_RECEIPT  # Else it is a cast, whose sender waits for nothing but the receipt.
        try:
            data = frames.data(seq, wire, message, ttl, flags)
        except (ValueError, AttributeError, TypeError) as exc:
            self._fail(parcel, MessageDeliveryFailure(f"a message to {parcel.address} cannot be written: {exc!r}"))
            return
        if consumer.must_resume:
            consumer.must_resume = False
            self._links.send(link, frames.record(frames.RESUME, wire))
        parcel.seq = seq
        parcel.consumer = consumer
        parcel.entry = consumer.entry
        parcel.confirmed = False
        parcel.size = len(data)
        consumer.outstanding += 1
        consumer.unconfirmed += 1
        link.in_flight[seq] = parcel
        link.unconfirmed += 1
        link.unconfirmed_bytes += parcel.size
        if parcel.send_until < self._next_check - CHECK_INTERVAL and not parcel.taken:
            self._check_at(parcel.send_until)
        if link.unconfirmed > WINDOW_MESSAGES or link.unconfirmed_bytes > WINDOW:
            link.congested = True
        self._links.send(link, data)

    def _send_waiting(self, queue: Queue) -> None:
        """Send waiting messages, as far as nodes can take them."""
        while queue.waiting:
            consumer = queue.pick()
            if consumer is None:
                break
            parcel = queue.waiting.popleft()
            if parcel.taken or not parcel.sent.done():
                self._send_to(consumer, parcel)
        if queue.waiting and not queue.consumers:
            # Nobody subscribes any more: messages that had a receipt wait for another server, the others fail.
            for parcel in [parcel for parcel in queue.waiting if not parcel.taken]:
                queue.waiting.remove(parcel)
                self._drop(parcel)
        if not queue.waiting:
            self._waiting.pop(queue, None)
            return
        self._waiting[queue] = None
        self._tick_soon()
        for consumer in queue.consumers:
            if consumer.link is None:
                consumer.link = self._router.reach(consumer.node)
            elif consumer.link.congested:
                self._receipts.held_up.setdefault(consumer.link, {})[queue] = None

    # Outcomes

    def _fail_undeliverable(self, parcel: Parcel) -> None:
        if not parcel.mandatory:
            finish(parcel.sent, Sent(0))
            return
        known = len(self._directory.entries)
        text = f"over ZeroMQ none of the known processes ({known} with this one) has it"
        if parcel.address.kind != "inbox":
            text += "; is its server started, and over ZeroMQ too?"
        fail(parcel.sent, MessageUndeliverable(f"nobody listens at {parcel.address}: {text}"))

    def _drop(self, parcel: Parcel) -> None:
        """Its node is dead, or does not subscribe any more. If no other was to get the message, nobody does."""
        receipts = parcel.receipts
        if receipts is not None and (receipts.missing > 1 or receipts.reached):
            parcel.mark_taken(0)
        else:
            self._fail_undeliverable(parcel)

    def _fail(self, parcel: Parcel, error: Exception) -> None:
        if not parcel.taken:
            fail(parcel.sent, error)
        else:
            LOG.error("message %s to %s is lost: %s", parcel.message.id, parcel.address, error)

    # What was given back

    def on_frame_end(self) -> None:
        """Send the messages that were given back, and those that waited for a node that has room now."""
        if not self._returned:
            return
        self._refresh()
        while self._returned:
            queue, parcels = self._returned.popitem()
            if parcels:
                queue.put_back(parcels)
            self._redistribute(queue)

    def _redistribute(self, queue: Queue) -> None:
        """Send the waiting messages of a queue, and recall messages from busy nodes that idle ones could run."""
        if queue.version != self._directory.version:
            self._router.update(queue)
        queue.drop_unsubscribed()
        self._send_waiting(queue)
        for consumer, count in () if self._is_leaving else queue.to_recall():
            assert consumer.link is not None
            consumer.recalling = True
            self._links.send(consumer.link, frames.numbered(frames.RECALL, count, queue.wire))

    # Connections

    def on_link_up(self, link: PeerLink) -> None:
        """Send the messages that waited for the connection."""
        self._router.forget_routes()
        for queue in list(self._queues.values()):
            if queue.node == link.node and queue.address.kind == "inbox":
                self._router.update(queue)  # The directory may not know its node; the connection is enough.
            consumer = queue.by_node.get(link.node)
            if consumer is not None and consumer.link is None:
                consumer.link = link
                self._returned.setdefault(queue, [])
        self.send_unrouted()
        self._lost.on_link_up(link)
        self.on_frame_end()

    def on_link_down(self, link: PeerLink, why: str) -> None:
        """Send unsettled messages to other nodes. Those without a receipt fail: they may have been delivered."""
        self._router.forget_routes()
        in_flight, link.in_flight = link.in_flight, {}
        link.unconfirmed = 0
        self._receipts.held_up.pop(link, None)
        alive = None if link.peer_left else self._matchmaker.is_alive(link.node)
        for queue in list(self._queues.values()):
            consumer = queue.by_node.get(link.node)
            if consumer is not None and consumer.link is link:
                consumer.reset()
                self._returned.setdefault(queue, [])
        # After a BYE of this node the peer keeps what it has confirmed. What was sent after BYE it has not read.
        kept = link.left and not link.peer_left
        taken = {seq: parcel for seq, parcel in in_flight.items() if parcel.taken and not (kept and parcel.confirmed)}
        if taken:
            self._lost.add(link, taken, may_answer=not link.peer_left and alive is not False)
            self._tick_soon()
        for parcel in in_flight.values():
            if parcel.taken:
                pass
            elif link.peer_left:
                self._receipts.give_back(parcel)  # A node that leaves cleanly has sent all receipts before.
            elif parcel.queue.address.kind == "fanout" and alive is False:
                self._drop(parcel)
            else:
                text = f"node {link.node} was lost while a message to {parcel.address} was being sent: {why}"
                fail(parcel.sent, TransportUnavailable(text, maybe_delivered=True))
        self.on_frame_end()

    # Time

    def _tick_soon(self) -> None:
        if not self._is_ticking:
            self._is_ticking = True
            self._loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        """Try to send waiting messages, and fail those whose time has ended."""
        self._is_ticking = False
        if not (self._waiting or self._unrouted or self._lost.count()):
            return
        self._tick_soon()
        if self._lost.count():
            self._lost.reconnect()
            self.on_frame_end()
        if self._unrouted:
            self._refresh()
            if not self._matchmaker.why_incomplete():
                self.send_unrouted()
            self._fail_unrouted()
        if self._waiting:
            now = Loop.now()
            self._refresh()
            for queue in list(self._waiting):
                for parcel in queue.take_expired(now):
                    self._expire(parcel)
                self._redistribute(queue)

    def _fail_unrouted(self) -> None:
        """Fail the messages without a known server that have waited for too long."""
        now = Loop.now()
        expired = [parcel for parcel in self._unrouted if parcel.send_until <= now]
        self._unrouted = [parcel for parcel in self._unrouted if parcel.send_until > now]
        for parcel in expired:
            why = self._matchmaker.why_incomplete() or "the known nodes are being read"
            seconds = parcel.message.publish_within or 0
            text = f"gave up after {seconds:.3g} s: no server is known for {parcel.address}: {why}"
            fail(parcel.sent, TransportUnavailable(text))

    def _expire(self, parcel: Parcel) -> None:
        """It has waited in its queue for too long."""
        if parcel.taken:
            LOG.error(
                "message %s to %s is lost: the server that had it died, and no other has come in time",
                parcel.message.id,
                parcel.address,
            )
            return
        text = f"gave up after {parcel.message.publish_within or 0:.3g} s: to {parcel.address}: "
        consumers = parcel.queue.consumers
        if nodes := ", ".join(consumer.node for consumer in consumers if consumer.link is not None):
            fail(parcel.sent, TransportBlocked(f"{text}too many messages wait at its servers ({nodes})"))
        else:
            whys = "; ".join(f"node {each.node} at {self._links.dialler.why_not(each.node)}" for each in consumers)
            fail(parcel.sent, TransportUnavailable(f"{text}its servers cannot be reached: {whys or 'there are none'}"))

    def _check_at(self, when: float) -> None:
        """Check then for messages without a receipt. A check that was to be made later is made no more."""
        self._next_check = when
        self._loop.call_later(max(CHECK_INTERVAL, when - Loop.now()), self._check_unconfirmed, when)

    def _check_unconfirmed(self, when: float) -> None:
        """Fail messages that have no receipt in time: the node that they were sent to may be frozen."""
        if when != self._next_check:
            return
        now = Loop.now()
        next_check = self._next_check = FOREVER
        for link in self._links.all():
            for parcel in list(link.in_flight.values()):
                if parcel.taken or parcel.sent.done():
                    continue
                if parcel.send_until > now:
                    next_check = min(next_check, parcel.send_until)
                    continue
                text = f"node {link.node} did not confirm a message to {parcel.address} in time"
                fail(parcel.sent, TransportUnavailable(text, maybe_delivered=True))
        if next_check < FOREVER:
            self._check_at(next_check)

    # Inspecting and closing

    def waiting_for(self, address: Address) -> int:
        """How many of this node's own messages wait for a server."""
        queue = self._queues.get((address, ""))
        return 0 if queue is None else len(queue.waiting)

    def unfinished(self) -> list[Future[Sent]]:
        """The futures of all messages without a receipt."""
        parcels = [parcel for queue in self._waiting for parcel in queue.waiting]
        parcels += [parcel for link in self._links.all() for parcel in link.in_flight.values()]
        return [parcel.sent for parcel in parcels + self._unrouted if not parcel.sent.done()]

    def may_leave(self) -> bool:
        """Whether nodes have all messages that had a receipt, as far as there are nodes. Nothing is recalled any more.

        Once this node has said BYE it cannot send a message again that a node has given back.
        """
        self._is_leaving = True
        if self._lost.count():
            return False
        for queue in self._queues.values():
            if any(consumer.recalling for consumer in queue.by_node.values()):
                return False
            if queue.consumers and any(parcel.taken for parcel in queue.waiting):
                return False
        in_flight = (parcel for link in self._links.all() for parcel in link.in_flight.values())
        return all(parcel.confirmed or not parcel.taken for parcel in in_flight)

    def end(self) -> int:
        """Send nothing any more. Returns how many messages that had a receipt have neither a server nor a sender."""
        lost = self._lost.count() + sum(parcel.taken for queue in self._waiting for parcel in queue.waiting)
        self._lost.clear()
        self._waiting.clear()
        self._unrouted.clear()
        return lost
