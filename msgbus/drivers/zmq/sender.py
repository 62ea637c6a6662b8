"""The sending half of a node: for its own messages it does what a broker would do.

It keeps each message until the node that got it reports that it is settled, sends it to another node if that one dies
or gives it back, and recalls messages from a busy node that an idle one could run.

Everything here belongs to the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.toolkit.futures import LightFuture, fail
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.links import Links
from msgbus.drivers.zmq.lost import LostLinks
from msgbus.drivers.zmq.matchmakers.base import Directory, Matchmaker
from msgbus.drivers.zmq.queue import Copy, Parcel, Queue, RemoteConsumer
from msgbus.drivers.zmq.routing import Router
from msgbus.drivers.zmq.unrouted import Unrouted
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessageTooLarge,
    MessageUndeliverable,
    TransportBlocked,
    TransportUnavailable,
)
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

WINDOW = 32 * 1024 * 1024
"""Bytes on one connection that may be without a receipt, give or take a message; then sending waits for receipts."""
WINDOW_MESSAGES = 4000
"""The same in messages. So a peer that does not read can use only a bounded amount of memory."""


class ZmqSender:
    """See the module's text.

    Attributes:
        next_check: the earliest time at which `fail_unconfirmed` may have something to do.
    """

    def __init__(
        self,
        links: Links,
        directory: Directory,
        router: Router,
        refresh: Callable[[], None],
        matchmaker: Matchmaker,
        server_expires: float,
    ) -> None:
        """Make one.

        Args:
            links: the connections.
            directory: the nodes that are known.
            router: the queues of each address.
            refresh: brings the directory up to date.
            matchmaker: says whether a node's process lives, and whether there may be nodes that are not known.
            server_expires: seconds for which a message without ttl is kept after its server has died.
        """
        self._links = links
        self._directory = directory
        self._refresh = refresh
        self._matchmaker = matchmaker
        self._server_expires = server_expires
        self._router = router
        self._route = router.route
        self._queues = router.queues
        self._unrouted = Unrouted(matchmaker)
        self._lost = LostLinks(links, directory, router, matchmaker.is_alive, self._give_back)
        self._waiting: dict[Queue, None] = {}  # queues in which something waits
        self._returned: dict[
            Queue, list[Copy]
        ] = {}  # queues to be redistributed, each with the messages that were given back
        self._held_up: dict[PeerLink, dict[Queue, None]] = {}  # queues that wait for a congested connection
        self._number = 0
        self.next_check = FOREVER

    # Sending

    def send(self, parcel: Parcel) -> None:
        """Send a message, or keep it until a node can take it. The directory is up to date."""
        if parcel.sent.done():
            return
        if self._matchmaker.is_opening and not self._is_connected(parcel.address):
            self._unrouted.parcels.append(parcel)  # The directory is not complete yet.
            return
        queues = self._route(parcel.address)
        if not queues:
            if self._unrouted.may_be_served(parcel):
                self._unrouted.parcels.append(parcel)
            else:
                self._fail_undeliverable(parcel)
            return
        parcel.missing = len(queues)
        for queue in queues:
            self._number += 1
            self._put(queue, Copy(parcel, queue, self._number))

    def _is_connected(self, address: Address) -> bool:
        """Whether it is an inbox to whose node there is a connection: that is enough, whatever the directory says."""
        return address.kind == "inbox" and self._links.link(address.name.partition(".")[0]) is not None

    def send_unrouted(self) -> None:
        """Send the messages again that had no known server: there may be more nodes in the directory now."""
        if self._unrouted.parcels:
            for parcel in self._unrouted.take_all():
                self.send(parcel)

    def reroute(self, address: Address, message: Message, redelivered: bool) -> None:
        """Find another server for a message that a subscriber of this node gives back, and whose sender is dead."""
        parcel = Parcel(address, message, False, LightFuture())
        parcel.sent.set_result(Sent())
        queue = self._router.queue(address, "")
        self._number += 1
        copy = Copy(parcel, queue, self._number)
        copy.redelivered = redelivered
        copy.taken = True
        copy.send_until = min(parcel.expires, Loop.now() + self._server_expires)
        self._put(queue, copy)

    def _put(self, queue: Queue, copy: Copy) -> None:
        if not queue.waiting:
            consumer = queue.pick()
            if consumer is not None:
                self._send_to(consumer, copy)
                return
        queue.waiting.append(copy)
        self._waiting[queue] = None
        self._send_waiting(queue)

    def _send_to(self, consumer: RemoteConsumer, copy: Copy) -> None:
        """Send a message to the node that was picked for it."""
        parcel, link = copy.parcel, consumer.link
        message = parcel.message
        assert link is not None
        if len(message.body) > link.largest:
            self._fail(
                copy,
                MessageTooLarge(
                    f"a message of {len(message.body)} bytes to {parcel.address}; node {link.node} takes at most "
                    f"{link.largest} bytes (its option max_message_size of [msgbus_zmq])"
                ),
            )
            return
        seq = link.next_number()
        ttl = None if message.ttl is None else parcel.expires - Loop.now()
        flags = frames.REDELIVERED if copy.redelivered else 0
        if message.ttl is not None:  # A call waits for its answer. Only a cast never expires.
            flags |= frames.LAZY_RECEIPT
        try:
            data = frames.data(seq, consumer.queue.wire, message, ttl, flags)
        except (ValueError, AttributeError, TypeError) as exc:
            self._fail(copy, MessageDeliveryFailure(f"a message to {parcel.address} cannot be written: {exc!r}"))
            return
        if consumer.must_resume:
            consumer.must_resume = False
            self._links.send(link, frames.record(frames.RESUME, consumer.queue.wire))
        copy.seq = seq
        copy.consumer = consumer
        copy.entry = consumer.entry
        copy.confirmed = False
        consumer.outstanding += 1
        link.in_flight[seq] = copy
        link.unconfirmed += 1
        link.unconfirmed_bytes += len(data)
        copy.size = len(data)
        if copy.send_until < self.next_check and not copy.taken:
            self.next_check = copy.send_until
        if link.unconfirmed > WINDOW_MESSAGES or link.unconfirmed_bytes > WINDOW:
            link.congested = True
        self._links.send(link, data)

    def _send_waiting(self, queue: Queue) -> None:
        """Send waiting messages, as far as nodes can take them."""
        while queue.waiting:
            consumer = queue.pick()
            if consumer is None:
                break
            copy = queue.waiting.popleft()
            if copy.taken or not copy.parcel.sent.done():
                self._send_to(consumer, copy)
        if queue.waiting and not queue.consumers:
            # Nobody subscribes any more: messages that had a receipt wait for another server, the others fail.
            for copy in [copy for copy in queue.waiting if not copy.taken]:
                queue.waiting.remove(copy)
                self._drop_copy(copy)
        if not queue.waiting:
            self._waiting.pop(queue, None)
            return
        for consumer in queue.consumers:
            if consumer.link is None:
                consumer.link = self._router.reach(consumer.node)
            elif consumer.link.congested:
                self._held_up.setdefault(consumer.link, {})[queue] = None

    # Outcomes

    def _fail_undeliverable(self, parcel: Parcel) -> None:
        if parcel.mandatory:
            known = len(self._directory.entries)
            text = f"over ZeroMQ none of the known processes ({known} with this one) has it"
            if parcel.address.kind != "inbox":
                text += "; is its server started, and over ZeroMQ too?"
            fail(parcel.sent, MessageUndeliverable(f"nobody listens at {parcel.address}: {text}"))
        else:
            parcel.finish()

    def _drop_copy(self, copy: Copy) -> None:
        """Its node is dead, or does not subscribe any more. If it was the only copy, nobody is left to get it."""
        parcel = copy.parcel
        parcel.missing -= 1
        if parcel.missing > 0:
            return
        if parcel.reached:
            parcel.finish()
        else:
            self._fail_undeliverable(parcel)

    def _mark_taken(self, copy: Copy, reached: int) -> None:
        if not copy.taken:
            copy.taken = True
            parcel = copy.parcel
            parcel.reached += reached
            parcel.missing -= 1
            if parcel.missing <= 0:
                parcel.finish()

    def _fail(self, copy: Copy, error: Exception) -> None:
        if not copy.taken:
            fail(copy.parcel.sent, error)
        else:
            LOG.error("message %s to %s is lost: %s", copy.parcel.message.id, copy.parcel.address, error)

    # Receipts and other records

    def _confirm(self, link: PeerLink, copy: Copy) -> None:
        """There is a receipt: the message does not count for the connection's window any more."""
        if copy.confirmed:
            return
        copy.confirmed = True
        link.unconfirmed -= 1
        link.unconfirmed_bytes -= copy.size
        if link.congested and link.unconfirmed < WINDOW_MESSAGES // 2 and link.unconfirmed_bytes < WINDOW // 2:
            link.congested = False
            for queue in self._held_up.pop(link, ()):
                self._returned.setdefault(queue, [])

    def on_taken(self, link: PeerLink, seqs: Iterable[int], *, queued: bool = False) -> None:
        """TAKEN, QUEUED."""
        for seq in seqs:
            copy = link.in_flight.get(seq)
            if copy is None:
                continue
            self._confirm(link, copy)
            self._mark_taken(copy, 1)
            consumer = copy.consumer
            if not copy.queue.settles:
                self._remove(link, seq, copy)
            elif queued:
                consumer.queued[seq] = None
                consumer.busy = True
                self._returned.setdefault(copy.queue, [])

    def on_reached(self, link: PeerLink, pairs: tuple[int, ...]) -> None:
        """REACHED."""
        for seq, count in zip(pairs[::2], pairs[1::2], strict=False):
            copy = link.in_flight.get(seq)
            if copy is not None:
                self._confirm(link, copy)
                self._mark_taken(copy, count)
                self._remove(link, seq, copy)

    def on_settled(self, link: PeerLink, seqs: Iterable[int]) -> None:
        """SETTLED."""
        for seq in seqs:
            copy = link.in_flight.get(seq)
            if copy is None:
                continue
            self._confirm(link, copy)
            if not copy.taken:
                self._mark_taken(copy, 1)
            self._remove(link, seq, copy)
            queue = copy.queue
            if queue.waiting or (len(queue.consumers) > 1 and queue.has_queued()):
                self._returned.setdefault(queue, [])

    def _remove(self, link: PeerLink, seq: int, copy: Copy) -> None:
        """Note that the other side does not have it any more."""
        del link.in_flight[seq]
        consumer = copy.consumer
        consumer.outstanding -= 1
        if consumer.queued:
            consumer.queued.pop(seq, None)

    def on_given_back(self, link: PeerLink, kind: int, seqs: Iterable[int]) -> None:
        """FULL, NOBODY, REQUEUED, RELEASED."""
        for seq in seqs:
            copy = link.in_flight.get(seq)
            if copy is None:
                continue
            self._confirm(link, copy)
            self._remove(link, seq, copy)
            consumer = copy.consumer
            if kind == frames.REQUEUED:
                copy.redelivered = True
                self._mark_taken(copy, 1)
            elif kind == frames.RELEASED:
                self._mark_taken(copy, 1)
            elif kind == frames.FULL:
                consumer.full = consumer.busy = True
            elif copy.entry is consumer.entry:
                consumer.unsubscribed = True  # Else its entry has changed since the message was sent.
            self._give_back(copy)

    def _give_back(self, copy: Copy) -> None:
        """Another node is to get it, once the whole frame has been read."""
        if copy.taken:
            copy.send_until = min(copy.parcel.expires, Loop.now() + self._server_expires)
        elif copy.parcel.sent.done():
            return  # It has failed, with maybe_delivered=True.
        self._returned.setdefault(copy.queue, []).append(copy)

    def on_ready(self, link: PeerLink, room: int, address: Address) -> None:
        """READY."""
        for queue, consumer in self._router.at(link, address):
            if consumer.full:
                consumer.full = False
                consumer.must_resume = True
            if room:
                consumer.busy = False
            self._returned.setdefault(queue, [])

    def on_recalled(self, link: PeerLink, missing: int, address: Address) -> None:
        """RECALLED."""
        for queue, consumer in self._router.at(link, address):
            consumer.recalling = False
            if missing:  # None of our messages waits there any more: its subscribers have them.
                consumer.queued.clear()
            self._returned.setdefault(queue, [])

    def on_unbegun(self, link: PeerLink, session: int, unbegun: Sequence[int]) -> None:
        """UNBEGUN."""
        self._lost.on_unbegun(link, session, unbegun)

    def on_frame_end(self) -> None:
        """Send the messages that were given back, and those that waited for a node that has room now."""
        if not self._returned:
            return
        self._refresh()
        while self._returned:
            queue, copies = self._returned.popitem()
            if copies:
                queue.put_back(copies)
                self._waiting[queue] = None
            self._redistribute(queue)

    def _redistribute(self, queue: Queue) -> None:
        """Send the waiting messages of a queue, and recall messages from busy nodes that idle ones could run."""
        if queue.version != self._directory.version:
            self._router.update(queue)
        queue.drop_unsubscribed()
        self._send_waiting(queue)
        for consumer, count in queue.to_recall():
            assert consumer.link is not None
            consumer.recalling = True
            self._links.send(consumer.link, frames.numbered(frames.RECALL, count, queue.wire))

    # Connections

    def on_link_up(self, link: PeerLink) -> None:
        """Send the messages that waited for the connection."""
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
        in_flight, link.in_flight = link.in_flight, {}
        link.unconfirmed = 0
        self._held_up.pop(link, None)
        alive = None if link.peer_left else self._matchmaker.is_alive(link.node)
        for queue in list(self._queues.values()):
            consumer = queue.by_node.get(link.node)
            if consumer is not None and consumer.link is link:
                consumer.reset()
                self._returned.setdefault(queue, [])
        taken = {seq: copy for seq, copy in in_flight.items() if copy.taken}
        if taken:
            self._lost.add(link, taken, may_answer=not link.peer_left and alive is not False)
        for copy in in_flight.values():
            if copy.taken:
                pass
            elif link.peer_left:
                self._give_back(copy)  # A node that leaves cleanly has sent all receipts before.
            elif copy.queue.address.kind == "fanout" and alive is False:
                self._drop_copy(copy)
            else:
                text = f"node {link.node} was lost while a message to {copy.parcel.address} was being sent: {why}"
                fail(copy.parcel.sent, TransportUnavailable(text, maybe_delivered=True))
        self.on_frame_end()

    # Time

    def has_waiting(self) -> bool:
        """Whether `tick` has something to do."""
        return bool(self._waiting or self._lost or self._unrouted.parcels)

    def tick(self) -> None:
        """Try to send waiting messages, and fail those whose time has ended."""
        if self._lost:
            self._lost.reconnect()
            self.on_frame_end()
        if self._unrouted.parcels:
            self._refresh()
            if not self._matchmaker.why_incomplete():
                self.send_unrouted()
            self._unrouted.fail_expired(Loop.now())
        if self._waiting:
            now = Loop.now()
            self._refresh()
            for queue in list(self._waiting):
                for copy in queue.take_expired(now):
                    self._expire(copy)
                self._redistribute(queue)

    def _expire(self, copy: Copy) -> None:
        parcel, queue = copy.parcel, copy.queue
        if copy.taken:
            LOG.error(
                "message %s to %s is lost: the server that had it died, and no other has come in time",
                parcel.message.id,
                parcel.address,
            )
            return
        text = f"gave up after {parcel.message.publish_within or 0:.3g} s: to {parcel.address}: "
        connected = [consumer for consumer in queue.consumers if consumer.link is not None]
        if connected:
            nodes = ", ".join(consumer.node for consumer in connected)
            fail(parcel.sent, TransportBlocked(f"{text}too many messages wait at its servers ({nodes})"))
        else:
            whys = "; ".join(f"node {c.node} at {self._links.why_not(c.node)}" for c in queue.consumers)
            fail(parcel.sent, TransportUnavailable(f"{text}its servers cannot be reached: {whys or 'there are none'}"))

    def fail_unconfirmed(self) -> None:
        """Fail messages that have no receipt in time: the node that they were sent to may be frozen."""
        now = Loop.now()
        self.next_check = FOREVER
        for link in self._links.all():
            for copy in list(link.in_flight.values()):
                if copy.taken or copy.parcel.sent.done():
                    continue
                if copy.send_until > now:
                    self.next_check = min(self.next_check, copy.send_until)
                    continue
                text = f"node {link.node} did not confirm a message to {copy.parcel.address} in time"
                fail(copy.parcel.sent, TransportUnavailable(text, maybe_delivered=True))

    # Inspecting and closing

    def waiting_for(self, address: Address) -> int:
        """How many of this node's own messages wait for a server."""
        queue = self._queues.get((address, ""))
        return 0 if queue is None else len(queue.waiting)

    def unfinished(self) -> list[Future[Sent]]:
        """The futures of all messages without a receipt."""
        copies = [copy for queue in self._waiting for copy in queue.waiting]
        copies += [copy for link in self._links.all() for copy in link.in_flight.values()]
        parcels = [copy.parcel for copy in copies] + self._unrouted.parcels
        return [parcel.sent for parcel in parcels if not parcel.sent.done()]

    def lost_at_close(self) -> int:
        """How many messages that had a receipt now have neither a server nor a sender."""
        waiting = sum(copy.taken for queue in self._waiting for copy in queue.waiting)
        return waiting + self._lost.count()
