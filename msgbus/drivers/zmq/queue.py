"""What a node has to send to an address: which nodes serve it, which messages each has, and which gets the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.toolkit.futures import finish
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.drivers.zmq.frames import write_address
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.matchmakers.base import Entry, Service


class Receipts:
    """What the parcels of one message have in common, if it goes to several queues.

    Attributes:
        missing: how many of them have no receipt yet.
        reached: how many subscribers have got the message.
    """

    __slots__ = ("missing", "reached")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.reached = 0


class Parcel:
    """A message that was passed to `Driver.send`, on its way to one queue. For each further queue there is another one.

    Attributes:
        sent: the future of its sender.
        expires: when it becomes worthless, in seconds of `Loop.now`.
        send_until: when it fails, or is lost, if no node has it by then.
        recheck: what `Matchmaker.recheck` returned for it, or -1.
        receipts: where the message goes to several queues.
        queue: the queue, once it was put into one.
        number: in the order of sending.
        seq: its number on the connection on which it was sent last.
        consumer: the node to which it was sent last.
        entry: that node's entry at the time.
        size: bytes.
        taken: it had a receipt once: its sender does not wait any more.
        confirmed: it has had a receipt on the connection on which it was sent last.
        redelivered: a subscriber may have had it.
    """

    __slots__ = (
        *("address", "confirmed", "consumer", "entry", "expires", "mandatory", "message", "number", "queue"),
        *("receipts", "recheck", "redelivered", "send_until", "sent", "seq", "size", "taken"),
    )

    queue: Queue
    consumer: RemoteConsumer

    def __init__(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        self.address = address
        self.message = message
        self.mandatory = mandatory
        self.sent = sent
        now = Loop.now()
        self.expires = FOREVER if message.ttl is None else now + message.ttl
        self.send_until = self.expires if message.send_timeout is None else now + message.send_timeout
        self.recheck = -1
        self.receipts: Receipts | None = None
        self.number = self.seq = self.size = 0
        self.taken = self.confirmed = self.redelivered = False
        self.entry: Entry | None = None

    def copy(self) -> Parcel:
        """One for another queue."""
        other = Parcel(self.address, self.message, self.mandatory, self.sent)
        other.expires, other.send_until, other.receipts = self.expires, self.send_until, self.receipts
        return other

    def mark_taken(self, reached: int) -> None:
        """It has its receipt: so many subscribers have got it. The last one of a message finishes its future."""
        if self.taken:
            return
        self.taken = True
        receipts = self.receipts
        if receipts is not None:
            receipts.missing -= 1
            receipts.reached += reached
            if receipts.missing > 0:
                return
            reached = receipts.reached
        finish(self.sent, Sent(reached))


@dataclass(eq=False, repr=False, slots=True)
class RemoteConsumer:
    """A node that serves a queue's address.

    Attributes:
        weight: how many of its subscribers do.
        prefetch: how many messages they hold at most.
        unsubscribed: it said that it has no subscriber, whatever the directory says.
        outstanding: how many of our messages it has.
        unconfirmed: how many of these have no receipt yet.
        queued: those of them, by number, that wait there for a subscriber, as far as is known.
        busy: when it last reported, its subscribers had no room.
        full: it has refused messages, and will report when it accepts them again.
        must_resume: it has reported that. What was under way meanwhile is refused too, and has to go before what comes
            after it: so RESUME and the next message are sent once all that was sent before has a receipt.
        recalling: RECALL was sent, and RECALLED has not come.
    """

    queue: Queue
    node: str
    link: PeerLink | None = None
    entry: Entry | None = None
    weight: int = 1
    prefetch: int = 0
    unsubscribed: bool = False
    outstanding: int = 0
    unconfirmed: int = 0
    queued: dict[int, None] = field(default_factory=dict)
    busy: bool = False
    full: bool = False
    must_resume: bool = False
    recalling: bool = False

    def reset(self) -> None:
        """Its connection is lost, with all that was sent on it."""
        self.link = None
        self.outstanding = self.unconfirmed = 0
        self.queued = {}
        self.busy = self.full = self.must_resume = self.recalling = False

    @property
    def is_open(self) -> bool:
        """Whether it can be sent a message now."""
        if self.link is None or self.full or self.unsubscribed or self.link.congested:
            return False
        return not (self.must_resume and self.unconfirmed)

    @property
    def room(self) -> int:
        """How many messages more its subscribers could begin, as far as is known."""
        return max(0, self.prefetch - self.outstanding) if self.is_open and not self.busy else 0


class Queue:
    """What is sent to one address.

    Attributes:
        node: the only node that it is for (a fanout's copy, an inbox), or empty.
        wire: the address as it is sent.
        settles: a message is kept until the node that has it reports that it is settled.
        waiting: messages that no node has, in the order of sending.
        consumers: the nodes that can be sent messages. `by_node` also has those that still have messages.
        version: of the directory that it was last updated from.
    """

    __slots__ = ("address", "by_node", "consumers", "node", "settles", "turn", "used", "version", "waiting", "wire")

    def __init__(self, address: Address, node: str) -> None:
        self.address = address
        self.node = node
        self.wire = write_address(address)
        self.settles = address.kind not in ("fanout", "inbox")
        self.waiting: deque[Parcel] = deque()
        self.consumers: list[RemoteConsumer] = []
        self.by_node: dict[str, RemoteConsumer] = {}
        self.turn = 0
        self.version = -1
        self.used = Loop.now()

    def update(self, services: Mapping[str, Service | None], entries: Mapping[str, Entry]) -> None:
        """Note which nodes serve the address now."""
        for node, service in services.items():
            consumer = self.by_node.get(node)
            if consumer is None:
                consumer = self.by_node[node] = RemoteConsumer(self, node)
            entry = entries.get(node)
            if consumer.entry is not entry:
                consumer.entry = entry
                consumer.unsubscribed = False  # Its entry is newer than what it said.
                if consumer.full:  # With a subscriber that has left, it has forgotten that it was to report.
                    consumer.full, consumer.must_resume = False, True
            if service is not None:
                consumer.weight, consumer.prefetch = max(1, service.consumers), service.prefetch
        self.consumers = [self.by_node[node] for node in services if not self.by_node[node].unsubscribed]
        for node in [node for node, consumer in self.by_node.items() if node not in services]:
            if not self.by_node[node].outstanding:
                del self.by_node[node]

    def drop_unsubscribed(self) -> None:
        """Leave out nodes that said that they have no subscriber."""
        if any(consumer.unsubscribed for consumer in self.consumers):
            self.consumers = [consumer for consumer in self.consumers if not consumer.unsubscribed]

    def pick(self) -> RemoteConsumer | None:
        """The node that gets the next message: the one with the fewest of ours, an idle one first, in turns."""
        consumers = self.consumers
        count = len(consumers)
        if count == 1:
            return consumers[0] if consumers[0].is_open else None
        best: RemoteConsumer | None = None
        best_load = 0.0
        best_at = 0
        for step in range(count):
            at = (self.turn + step) % count
            consumer = consumers[at]
            if not consumer.is_open:
                continue
            load = consumer.outstanding / consumer.weight
            if consumer.busy or consumer.outstanding >= consumer.prefetch:
                load += 1e9
            if best is None or load < best_load:
                best, best_load, best_at = consumer, load, at
        if best is not None:
            self.turn = best_at + 1
        return best

    def has_queued(self) -> bool:
        """Whether something waits at a node for a subscriber."""
        return any(consumer.queued for consumer in self.consumers)

    def to_recall(self) -> list[tuple[RemoteConsumer, int]]:
        """From which nodes to recall how many messages, since others have room for them."""
        if len(self.consumers) < 2 or self.waiting:
            return []
        room = sum(consumer.room for consumer in self.consumers)
        found = []
        for consumer in sorted(self.consumers, key=lambda consumer: -len(consumer.queued)):
            if room <= 0 or not consumer.queued:
                break
            if consumer.recalling or consumer.link is None:
                continue
            count = min(room, len(consumer.queued))
            found.append((consumer, count))
            room -= count
        return found

    def put_back(self, parcels: Sequence[Parcel]) -> None:
        """Put returned messages where they were: before those that were sent later."""
        parcels = sorted(parcels, key=_number)
        if self.waiting and parcels[-1].number > self.waiting[0].number:
            self.waiting = deque(sorted((*parcels, *self.waiting), key=_number))
        else:
            self.waiting.extendleft(reversed(parcels))

    def take_expired(self, now: float) -> list[Parcel]:
        """Remove and return the messages that have waited for too long. Those that have failed are removed too."""
        waiting = [parcel for parcel in self.waiting if parcel.taken or not parcel.sent.done()]
        expired = [parcel for parcel in waiting if parcel.send_until <= now]
        if expired or len(waiting) < len(self.waiting):
            self.waiting = deque(parcel for parcel in waiting if parcel.send_until > now)
        return expired

    def is_unused(self, now: float, seconds: float) -> bool:
        """Whether it has had nothing to do for so long. Called every now and then."""
        if self.waiting or any(consumer.outstanding for consumer in self.by_node.values()):
            self.used = now
        return now - self.used > seconds


def _number(parcel: Parcel) -> int:
    return parcel.number
