"""What a node has to send to an address: which nodes serve it, which messages each has, and which gets the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.toolkit.futures import finish
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.drivers.zmq.frames import write_address
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.matchmakers.base import Entry, Service


class Parcel:
    """A message that was passed to `Driver.send`, and the future of its sender.

    Attributes:
        expires: when it becomes worthless, in seconds of `Loop.now`.
        send_until: when its sender stops waiting for a receipt.
        missing: how many of its copies have no receipt yet.
        reached: how many subscribers have got it.
        recheck: what `Matchmaker.recheck` returned for it, or -1.
    """

    __slots__ = ("address", "expires", "mandatory", "message", "missing", "reached", "recheck", "send_until", "sent")

    def __init__(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        self.address = address
        self.message = message
        self.mandatory = mandatory
        self.sent = sent
        now = Loop.now()
        self.expires = FOREVER if message.ttl is None else now + message.ttl
        self.send_until = self.expires if message.send_timeout is None else now + message.send_timeout
        self.missing = 0
        self.reached = 0
        self.recheck = -1

    def finish(self) -> None:
        """All copies have their receipts."""
        finish(self.sent, Sent(self.reached))


class Copy:
    """A parcel on its way to one queue.

    Attributes:
        number: in the order of sending.
        seq: its number on the connection on which it was sent last.
        consumer: the node to which it was sent last.
        entry: that node's entry at the time.
        taken: it had a receipt once: its sender does not wait any more.
        confirmed: it has had a receipt on the connection on which it was sent last.
        size: bytes.
        redelivered: a subscriber may have had it.
        send_until: when it fails, or is lost, if no node has it by then.
    """

    __slots__ = (
        "confirmed",
        "consumer",
        "entry",
        "number",
        "parcel",
        "queue",
        "redelivered",
        "send_until",
        "seq",
        "size",
        "taken",
    )

    consumer: RemoteConsumer

    def __init__(self, parcel: Parcel, queue: Queue, number: int) -> None:
        self.parcel = parcel
        self.queue = queue
        self.number = number
        self.seq = 0
        self.size = 0
        self.confirmed = False
        self.taken = False
        self.redelivered = False
        self.send_until = parcel.send_until
        self.entry: Entry | None = None


class RemoteConsumer:
    """A node that serves a queue's address.

    Attributes:
        weight: how many of its subscribers do.
        prefetch: how many messages they hold at most.
        outstanding: how many of our messages it has.
        queued: those of them, by number, that wait there for a subscriber, as far as is known.
        busy: when it last reported, its subscribers had no room.
        full: it has refused messages, and will report when it accepts them again.
        must_resume: it has reported that, and is to be sent RESUME before the next message.
        recalling: RECALL was sent, and RECALLED has not come.
        unsubscribed: it said that it has no subscriber, whatever the directory says.
    """

    __slots__ = (
        "busy",
        "entry",
        "full",
        "link",
        "must_resume",
        "node",
        "outstanding",
        "prefetch",
        "queue",
        "queued",
        "recalling",
        "unsubscribed",
        "weight",
    )

    def __init__(self, queue: Queue, node: str) -> None:
        self.queue = queue
        self.node = node
        self.link: PeerLink | None = None
        self.entry: Entry | None = None
        self.weight = 1
        self.prefetch = 0
        self.unsubscribed = False
        self.reset()

    def reset(self) -> None:
        """Its connection is lost, with all that was sent on it."""
        self.link = None
        self.outstanding = 0
        self.queued: dict[int, None] = {}
        self.busy = self.full = self.must_resume = self.recalling = False

    @property
    def room(self) -> int:
        """How many messages more its subscribers could begin, as far as is known."""
        if self.link is None or self.busy or self.full or self.unsubscribed or self.link.congested:
            return 0
        return max(0, self.prefetch - self.outstanding)


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
        self.waiting: deque[Copy] = deque()
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
            only = consumers[0]
            return None if only.link is None or only.full or only.unsubscribed or only.link.congested else only
        best: RemoteConsumer | None = None
        best_load = 0.0
        best_at = 0
        for step in range(count):
            at = (self.turn + step) % count
            consumer = consumers[at]
            if consumer.link is None or consumer.full or consumer.unsubscribed or consumer.link.congested:
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

    def put_back(self, copies: Sequence[Copy]) -> None:
        """Put returned messages where they were: before those that were sent later."""
        copies = sorted(copies, key=_number)
        if self.waiting and copies[-1].number > self.waiting[0].number:
            self.waiting = deque(sorted((*copies, *self.waiting), key=_number))
        else:
            self.waiting.extendleft(reversed(copies))

    def take_expired(self, now: float) -> list[Copy]:
        """Remove and return the messages that have waited for too long. Those that have failed are removed too."""
        expired = [copy for copy in self.waiting if copy.send_until <= now]
        if expired or any(not copy.taken and copy.parcel.sent.done() for copy in self.waiting):
            self.waiting = deque(
                copy for copy in self.waiting if copy.send_until > now and (copy.taken or not copy.parcel.sent.done())
            )
        return expired

    def is_unused(self, now: float, seconds: float) -> bool:
        """Whether it has had nothing to do for so long. Called every now and then."""
        if self.waiting or any(consumer.outstanding for consumer in self.by_node.values()):
            self.used = now
        return now - self.used > seconds


def _number(copy: Copy) -> int:
    return copy.number
