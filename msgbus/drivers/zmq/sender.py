"""The sending half of a node: for what it sends itself, it plays the part that elsewhere a broker plays.

It knows from the directory which nodes serve an address, keeps each message until the one that got it has settled it,
gives it to another when that one dies or gives it back, and takes back from a busy one what an idle one could run.

Everything here belongs to the loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.toolkit.futures import fail
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.link import Link
from msgbus.drivers.zmq.links import Links
from msgbus.drivers.zmq.lost import LostLinks
from msgbus.drivers.zmq.matchmakers.base import Directory, Matchmaker
from msgbus.drivers.zmq.queue import FOREVER, Consumer, Copy, Parcel, Queue
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
"""Bytes on one connection that have no receipt yet; more than one message past it is not sent before there are some."""
WINDOW_MESSAGES = 4000
"""Messages, likewise. So what a peer that does not read can cost is bounded."""
UNUSED = 60.0
"""Seconds after which a queue that nobody uses is forgotten."""


class Sender:
    """See the module's text.

    Attributes:
        next_look: the earliest time at which a message that has no receipt has to be given up.
    """

    def __init__(
        self,
        links: Links,
        directory: Directory,
        refresh: Callable[[], None],
        matchmaker: Matchmaker,
        server_expires: float,
    ) -> None:
        """Make one.

        Args:
            links: the connections.
            directory: who is there.
            refresh: brings the directory up to date.
            matchmaker: says whether a node's process lives, and whether more nodes may be there than are known.
            server_expires: seconds that a message without ttl is kept after the server that had it is gone.
        """
        self._links = links
        self._directory = directory
        self._refresh = refresh
        self._matchmaker = matchmaker
        self._is_alive = matchmaker.is_alive
        self._server_expires = server_expires
        self._queues: dict[tuple[Address, str], Queue] = {}
        self._parked: list[Parcel] = []
        self._waiting: dict[Queue, None] = {}
        self._returned: dict[Queue, list[Copy]] = {}
        self._starved: dict[Link, dict[Queue, None]] = {}
        self._lost = LostLinks(links, directory, matchmaker.is_alive, self._back)
        self._number = 0
        self.next_look = FOREVER

    # Sending

    def send(self, parcel: Parcel) -> None:
        """Send, or keep until somebody can take it. The directory is up to date."""
        if parcel.sent.done():
            return
        if self._matchmaker.is_opening and not self._is_connected(parcel.address):
            self._park(parcel)  # The directory knows only a part yet.
            return
        queues = self._route(parcel.address)
        if not queues:
            if self._may_come(parcel):
                self._park(parcel)
            else:
                self._nobody(parcel)
            return
        parcel.missing = len(queues)
        for queue in queues:
            self._number += 1
            self._put(queue, Copy(parcel, queue, self._number))

    def _may_come(self, parcel: Parcel) -> bool:
        """Whether somebody may be there for it of whom nothing is known yet."""
        matchmaker = self._matchmaker
        if parcel.address.kind != "inbox" and matchmaker.doubt():
            return True
        if parcel.question < 0:
            parcel.question = matchmaker.ask()
        return parcel.question > matchmaker.answered

    def _is_connected(self, address: Address) -> bool:
        """Whether it is an inbox to which there is a connection: that of the node is enough, whatever is known."""
        return address.kind == "inbox" and self._links.link(address.name.partition(".")[0]) is not None

    def _park(self, parcel: Parcel) -> None:
        """Keep what has no server, until it is known whether there is one."""
        self._parked.append(parcel)

    def unpark(self) -> None:
        """More may be known now."""
        if self._parked:
            parked, self._parked = self._parked, []
            for parcel in parked:
                self.send(parcel)

    def _give_up_parked(self, now: float) -> None:
        kept = []
        for parcel in self._parked:
            if parcel.gives_up > now:
                kept.append(parcel)
                continue
            why = self._matchmaker.doubt() or "it is not known yet who is there"
            text = f"gave up after {parcel.message.patience or 0:.3g} s: no server is known for {parcel.address}: {why}"
            fail(parcel.sent, TransportUnavailable(text))
        self._parked = kept

    def adopt(self, address: Address, message: Message, redelivered: bool) -> None:
        """Find another server for what a subscriber of this node gives back, and whose own sender is gone."""
        parcel = Parcel(address, message, False, Future())
        parcel.sent.set_result(Sent())
        queue = self._queue(address, "")
        self._number += 1
        copy = Copy(parcel, queue, self._number)
        copy.redelivered = redelivered
        copy.taken = True
        copy.gives_up = min(parcel.expires, time.monotonic() + self._server_expires)
        self._put(queue, copy)

    def _route(self, address: Address) -> list[Queue]:
        kind = address.kind
        if kind == "topic":
            queues = [self._queue(address, "")] if self._directory.nodes(address) else []
            pools = self._directory.pools(address.exchange, address.topic)
            return queues + [self._queue(pool, "") for pool in pools] if pools else queues
        if kind == "fanout":
            return [self._queue(address, node) for node in self._directory.nodes(address)]
        if kind == "inbox":
            node = address.name.partition(".")[0]
            if node not in self._directory.entries and self._links.link(node) is None:
                return []
            return [self._queue(address, node)]
        return [self._queue(address, "")] if self._directory.nodes(address) else []

    def _queue(self, address: Address, node: str) -> Queue:
        queue = self._queues.get((address, node))
        if queue is None:
            queue = self._queues[address, node] = Queue(address, node)
        if queue.version != self._directory.version:
            self._update(queue)
        return queue

    def _update(self, queue: Queue) -> None:
        """Take in what the directory says of the queue's address, and connect with who is new there."""
        directory = self._directory
        queue.version = directory.version
        if queue.address.kind == "inbox":
            known = queue.node in directory.entries or self._links.link(queue.node) is not None
            queue.update({queue.node: None} if known else {}, directory.entries)
        else:
            nodes = directory.nodes(queue.address)
            queue.update({node: nodes[node] for node in nodes if queue.node in ("", node)}, directory.entries)
        for consumer in queue.consumers:
            self._connect(consumer)

    def _connect(self, consumer: Consumer) -> None:
        if consumer.link is None:
            consumer.link = self._links.link(consumer.node)
            entry = self._directory.entries.get(consumer.node)
            if consumer.link is None and entry is not None:
                self._links.dial(consumer.node, entry.endpoints, entry.key)

    def _put(self, queue: Queue, copy: Copy) -> None:
        if not queue.waiting:
            consumer = queue.pick()
            if consumer is not None:
                self._give(consumer, copy)
                return
        queue.waiting.append(copy)
        self._waiting[queue] = None
        self._pump(queue)

    def _give(self, consumer: Consumer, copy: Copy) -> None:
        """Send a message to the one that was picked for it."""
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
        ttl = None if message.ttl is None else parcel.expires - time.monotonic()
        flags = frames.REDELIVERED if copy.redelivered else 0
        if message.ttl is not None:  # Who calls waits for the answer; only what never expires is a cast.
            flags |= frames.PATIENT
        try:
            data = frames.data(seq, consumer.queue.wire, message, ttl, flags)
        except (ValueError, AttributeError, TypeError) as exc:
            self._fail(copy, MessageDeliveryFailure(f"a message to {parcel.address} cannot be written: {exc!r}"))
            return
        if consumer.resume:
            consumer.resume = False
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
        if copy.gives_up < self.next_look and not copy.taken:
            self.next_look = copy.gives_up
        if link.unconfirmed > WINDOW_MESSAGES or link.unconfirmed_bytes > WINDOW:
            link.congested = True
        self._links.send(link, data)

    def _pump(self, queue: Queue) -> None:
        """Send what waits, as far as somebody can take it."""
        while queue.waiting:
            consumer = queue.pick()
            if consumer is None:
                break
            copy = queue.waiting.popleft()
            if copy.taken or not copy.parcel.sent.done():
                self._give(consumer, copy)
        if not queue.waiting:
            self._waiting.pop(queue, None)
            return
        if not queue.consumers:
            self._give_up_on(queue)
            return
        for consumer in queue.consumers:
            if consumer.link is None:
                self._connect(consumer)
            elif consumer.link.congested:
                self._starved.setdefault(consumer.link, {})[queue] = None

    def _give_up_on(self, queue: Queue) -> None:
        """Nobody subscribes any more: what was not taken yet fails, what was waits for another to come."""
        for copy in [copy for copy in queue.waiting if not copy.taken]:
            queue.waiting.remove(copy)
            self._skip(copy)
        if not queue.waiting:
            self._waiting.pop(queue, None)

    # Outcomes

    def _nobody(self, parcel: Parcel) -> None:
        if parcel.mandatory:
            known = len(self._directory.entries)
            text = f"over ZeroMQ none of the known processes ({known} with this one) has it"
            if parcel.address.kind != "inbox":
                text += "; is its server started, and over ZeroMQ too?"
            fail(parcel.sent, MessageUndeliverable(f"nobody listens at {parcel.address}: {text}"))
        else:
            parcel.finish()

    def _skip(self, copy: Copy) -> None:
        """The one for whom it was is no more. A copy of several is not missed; the only one has nobody."""
        parcel = copy.parcel
        parcel.missing -= 1
        if parcel.missing > 0:
            return
        if parcel.reached:
            parcel.finish()
        else:
            self._nobody(parcel)

    def _taken(self, copy: Copy, reached: int) -> None:
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

    # What the other side says

    def _confirm(self, link: Link, copy: Copy) -> None:
        """There is word of a message: it counts no more for the connection's window."""
        if copy.confirmed:
            return
        copy.confirmed = True
        link.unconfirmed -= 1
        link.unconfirmed_bytes -= copy.size
        if link.congested and link.unconfirmed < WINDOW_MESSAGES // 2 and link.unconfirmed_bytes < WINDOW // 2:
            link.congested = False
            for queue in self._starved.pop(link, ()):
                self._returned.setdefault(queue, [])

    def on_taken(self, link: Link, seqs: Iterable[int], *, queued: bool = False) -> None:
        """TAKEN, QUEUED."""
        for seq in seqs:
            copy = link.in_flight.get(seq)
            if copy is None:
                continue
            self._confirm(link, copy)
            self._taken(copy, 1)
            consumer = copy.consumer
            if not copy.queue.settles:
                self._settle(link, seq, copy)
            elif queued:
                consumer.queued[seq] = None
                consumer.busy = True
                self._returned.setdefault(copy.queue, [])

    def on_reached(self, link: Link, pairs: tuple[int, ...]) -> None:
        """REACHED."""
        for seq, count in zip(pairs[::2], pairs[1::2], strict=False):
            copy = link.in_flight.get(seq)
            if copy is not None:
                self._confirm(link, copy)
                self._taken(copy, count)
                self._settle(link, seq, copy)

    def on_settled(self, link: Link, seqs: Iterable[int]) -> None:
        """SETTLED."""
        for seq in seqs:
            copy = link.in_flight.get(seq)
            if copy is None:
                continue
            self._confirm(link, copy)
            if not copy.taken:
                self._taken(copy, 1)
            self._settle(link, seq, copy)
            queue = copy.queue
            if queue.waiting or (len(queue.consumers) > 1 and queue.has_queued()):
                self._returned.setdefault(queue, [])

    def _settle(self, link: Link, seq: int, copy: Copy) -> None:
        del link.in_flight[seq]
        consumer = copy.consumer
        consumer.outstanding -= 1
        if consumer.queued:
            consumer.queued.pop(seq, None)

    def on_given_back(self, link: Link, kind: int, seqs: Iterable[int]) -> None:
        """FULL, NOBODY, REQUEUED, RELEASED."""
        for seq in seqs:
            copy = link.in_flight.get(seq)
            if copy is None:
                continue
            self._confirm(link, copy)
            self._settle(link, seq, copy)
            consumer = copy.consumer
            if kind == frames.REQUEUED:
                copy.redelivered = True
                self._taken(copy, 1)
            elif kind == frames.RELEASED:
                self._taken(copy, 1)
            elif kind == frames.FULL:
                consumer.full = consumer.busy = True
            elif copy.entry is consumer.entry:
                consumer.gone = True  # Else it has told others of a change since.
            self._back(copy)

    def _back(self, copy: Copy) -> None:
        """It is for another to have; once the whole frame has been read."""
        if copy.taken:
            copy.gives_up = min(copy.parcel.expires, time.monotonic() + self._server_expires)
        elif copy.parcel.sent.done():
            return  # Its sender has been told that it may have arrived.
        self._returned.setdefault(copy.queue, []).append(copy)

    def on_ready(self, link: Link, room: int, address: Address) -> None:
        """READY."""
        for queue, consumer in self._at(link, address):
            if consumer.full:
                consumer.full = False
                consumer.resume = True
            if room:
                consumer.busy = False
            self._returned.setdefault(queue, [])

    def on_recalled(self, link: Link, missing: int, address: Address) -> None:
        """RECALLED."""
        for queue, consumer in self._at(link, address):
            consumer.recalling = False
            if missing:  # What it still has of ours, its subscribers have.
                consumer.queued.clear()
            self._returned.setdefault(queue, [])

    def _at(self, link: Link, address: Address) -> list[tuple[Queue, Consumer]]:
        found = []
        for node in ("", link.node):
            queue = self._queues.get((address, node))
            consumer = None if queue is None else queue.by_node.get(link.node)
            if queue is not None and consumer is not None and consumer.link is link:
                found.append((queue, consumer))
        return found

    def work_off(self) -> None:
        """Deal with what was given back, and with who has room now. Called when a frame has been read."""
        if not self._returned:
            return
        self._refresh()
        while self._returned:
            queue, copies = self._returned.popitem()
            if queue.version != self._directory.version:
                self._update(queue)
            if copies:
                queue.put_back(copies)
                self._waiting[queue] = None
            queue.drop_gone()
            self._pump(queue)
            self._balance(queue)

    def _balance(self, queue: Queue) -> None:
        """Ask a busy server for what an idle one could run."""
        for consumer, count in queue.to_recall():
            assert consumer.link is not None
            consumer.recalling = True
            self._links.send(consumer.link, frames.numbered(frames.RECALL, count, queue.wire))

    # Connections

    def on_link_up(self, link: Link) -> None:
        """Those who waited for it may go."""
        for queue in list(self._queues.values()):
            if queue.node == link.node and queue.address.kind == "inbox":
                self._update(queue)  # Its owner may be known by its connection alone, and not by the directory.
            consumer = queue.by_node.get(link.node)
            if consumer is not None and consumer.link is None:
                consumer.link = link
                self._returned.setdefault(queue, [])
        self.unpark()
        self._lost.on_link_up(link)
        self.work_off()

    def on_link_down(self, link: Link, why: str) -> None:
        """What was sent over it and not settled is for others; what has no receipt may have arrived."""
        in_flight, link.in_flight = link.in_flight, {}
        link.unconfirmed = 0
        self._starved.pop(link, None)
        alive = None if link.left else self._is_alive(link.node)
        for queue in list(self._queues.values()):
            consumer = queue.by_node.get(link.node)
            if consumer is not None and consumer.link is link:
                consumer.reset()
                self._returned.setdefault(queue, [])
        taken = {seq: copy for seq, copy in in_flight.items() if copy.taken}
        if taken:
            self._lost.add(link, taken, may_tell=not link.left and alive is not False)
        for copy in in_flight.values():
            if copy.taken:
                pass
            elif link.left:
                self._back(copy)  # Who leaves in good order has said of all that it took that it did.
            elif copy.queue.address.kind == "fanout" and alive is False:
                self._skip(copy)
            else:
                text = f"node {link.node} was lost while a message to {copy.parcel.address} was being sent: {why}"
                fail(copy.parcel.sent, TransportUnavailable(text, maybe_delivered=True))
        self.work_off()

    def on_unbegun(self, link: Link, session: int, unbegun: Sequence[int]) -> None:
        """UNBEGUN."""
        self._lost.on_unbegun(link, session, unbegun)

    # Time

    def tick(self) -> None:
        """Look after what waits."""
        if self._lost:
            self._lost.ask()
            self.work_off()
        if self._parked:
            self._refresh()
            if not self._matchmaker.doubt():
                self.unpark()
            self._give_up_parked(time.monotonic())
        if self._waiting:
            now = time.monotonic()
            self._refresh()
            for queue in list(self._waiting):
                if queue.version != self._directory.version:
                    self._update(queue)
                for copy in queue.take_expired(now):
                    self._expire(copy)
                queue.drop_gone()
                self._pump(queue)
                self._balance(queue)

    def connect_all(self) -> None:
        """Connect with all servers of what is in use. One of them may have to answer what another handed on to it."""
        for queue in list(self._queues.values()):
            if queue.version != self._directory.version:
                self._update(queue)
            else:
                for consumer in queue.consumers:
                    self._connect(consumer)

    def give_up_unconfirmed(self) -> None:
        """Give up what has no receipt by the end of its patience: who has it may be frozen."""
        now = time.monotonic()
        self.next_look = FOREVER
        for link in self._links.all():
            for copy in list(link.in_flight.values()):
                if copy.taken or copy.parcel.sent.done():
                    continue
                if copy.gives_up > now:
                    self.next_look = min(self.next_look, copy.gives_up)
                    continue
                text = f"node {link.node} did not confirm a message to {copy.parcel.address} in time"
                fail(copy.parcel.sent, TransportUnavailable(text, maybe_delivered=True))

    def forget_unused(self) -> None:
        """Forget queues that nobody uses. Called every now and then."""
        now = time.monotonic()
        for key, queue in list(self._queues.items()):
            if queue.is_unused(now, UNUSED):
                del self._queues[key]

    def _expire(self, copy: Copy) -> None:
        parcel, queue = copy.parcel, copy.queue
        if copy.taken:
            LOG.error(
                "message %s to %s is lost: the server that had it is gone, and none has come for it in time",
                parcel.message.id,
                parcel.address,
            )
            return
        text = f"gave up after {parcel.message.patience or 0:.3g} s: to {parcel.address}: "
        connected = [consumer for consumer in queue.consumers if consumer.link is not None]
        if connected:
            nodes = ", ".join(consumer.node for consumer in connected)
            fail(parcel.sent, TransportBlocked(f"{text}too many messages wait at its servers ({nodes})"))
        else:
            whys = "; ".join(f"node {c.node} at {self._links.why_not(c.node)}" for c in queue.consumers)
            fail(parcel.sent, TransportUnavailable(f"{text}its servers cannot be reached: {whys or 'there are none'}"))

    def waits(self) -> bool:
        """Whether something waits for a server."""
        return bool(self._waiting or self._lost or self._parked)

    def depth(self, address: Address) -> int:
        """How many of this node's own messages wait."""
        queue = self._queues.get((address, ""))
        return 0 if queue is None else len(queue.waiting)

    def unfinished(self) -> list[Future[Sent]]:
        """The futures of all that nobody has taken yet."""
        copies = [copy for queue in self._waiting for copy in queue.waiting]
        copies += [copy for link in self._links.all() for copy in link.in_flight.values()]
        parcels = [copy.parcel for copy in copies] + self._parked
        return [parcel.sent for parcel in parcels if not parcel.sent.done()]

    def lost_at_close(self) -> int:
        """How many messages, which somebody took, now have neither a server nor a sender."""
        waiting = sum(copy.taken for queue in self._waiting for copy in queue.waiting)
        return waiting + self._lost.count()
