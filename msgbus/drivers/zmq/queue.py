"""What a node has to send, by address: who could take it, who has how much of it, and who is to get the next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.toolkit.futures import finish
from msgbus.drivers.zmq.frames import write_address
from msgbus.drivers.zmq.link import Link
from msgbus.drivers.zmq.matchmakers.base import Entry, Service

FOREVER = float("inf")


class Parcel:
    """A message that was handed to `Driver.send`, and the future of its sender.

    Attributes:
        expires: when it becomes worthless, in seconds of `time.monotonic`.
        gives_up: when its sender stops waiting for somebody who takes it.
        missing: how many of its copies nobody has taken yet.
        reached: how many subscribers have.
        question: the number of the one that was asked about it, see `Matchmaker.ask`, or -1.
    """

    __slots__ = ("address", "expires", "gives_up", "mandatory", "message", "missing", "question", "reached", "sent")

    def __init__(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        self.address = address
        self.message = message
        self.mandatory = mandatory
        self.sent = sent
        now = time.monotonic()
        self.expires = FOREVER if message.ttl is None else now + message.ttl
        self.gives_up = self.expires if message.wait is None else now + message.wait
        self.missing = 0
        self.reached = 0
        self.question = -1

    def finish(self) -> None:
        """All that are there have it."""
        finish(self.sent, Sent(self.reached))


class Copy:
    """A parcel on its way to one queue.

    Attributes:
        number: in the order of sending.
        seq: its number on the connection by which it was sent last.
        consumer: whom it was sent to last.
        entry: what that told of itself then.
        taken: somebody took it, once: its sender waits no more.
        confirmed: there was word of it on the connection by which it was sent last.
        size: bytes.
        redelivered: a subscriber may have had it.
        gives_up: when nobody is waited for any longer.
    """

    __slots__ = (
        "confirmed",
        "consumer",
        "entry",
        "gives_up",
        "number",
        "parcel",
        "queue",
        "redelivered",
        "seq",
        "size",
        "taken",
    )

    consumer: Consumer

    def __init__(self, parcel: Parcel, queue: Queue, number: int) -> None:
        self.parcel = parcel
        self.queue = queue
        self.number = number
        self.seq = 0
        self.size = 0
        self.confirmed = False
        self.taken = False
        self.redelivered = False
        self.gives_up = parcel.gives_up
        self.entry: Entry | None = None


class Consumer:
    """A node that serves a queue's address.

    Attributes:
        weight: how many of its subscribers do.
        prefetch: how many messages they hold at most.
        outstanding: how many messages of ours it has.
        queued: those of them, by number, that no subscriber of it has yet, as far as is known.
        busy: when it last spoke of it, its subscribers had no room.
        full: it took no more, and will say when it does.
        resume: it has said so, and is to be told where what it refused ends.
        recalling: it was asked to give back what is queued.
        gone: it said that nobody subscribes there, whatever the directory says.
    """

    __slots__ = (
        "busy",
        "entry",
        "full",
        "gone",
        "link",
        "node",
        "outstanding",
        "prefetch",
        "queue",
        "queued",
        "recalling",
        "resume",
        "weight",
    )

    def __init__(self, queue: Queue, node: str) -> None:
        self.queue = queue
        self.node = node
        self.link: Link | None = None
        self.entry: Entry | None = None
        self.weight = 1
        self.prefetch = 0
        self.gone = False
        self.reset()

    def reset(self) -> None:
        """Its connection is gone, with all that was sent by it."""
        self.link = None
        self.outstanding = 0
        self.queued: dict[int, None] = {}
        self.busy = self.full = self.resume = self.recalling = False

    @property
    def room(self) -> int:
        """How many messages more its subscribers could begin, as far as is known."""
        if self.link is None or self.busy or self.full or self.gone or self.link.congested:
            return 0
        return max(0, self.prefetch - self.outstanding)


class Queue:
    """What is sent to one address.

    Attributes:
        node: the only node that it is for (a fanout's copy, an inbox), or empty.
        wire: the address as it travels.
        settles: what somebody took is kept until it is settled.
        waiting: what nobody has, in the order of sending.
        consumers: who can be given something. `by_node` has, besides, those who have something left.
        version: of the directory that was looked at.
    """

    __slots__ = ("address", "by_node", "consumers", "node", "settles", "turn", "used", "version", "waiting", "wire")

    def __init__(self, address: Address, node: str) -> None:
        self.address = address
        self.node = node
        self.wire = write_address(address)
        self.settles = address.kind not in ("fanout", "inbox")
        self.waiting: deque[Copy] = deque()
        self.consumers: list[Consumer] = []
        self.by_node: dict[str, Consumer] = {}
        self.turn = 0
        self.version = -1
        self.used = time.monotonic()

    def update(self, services: Mapping[str, Service | None], entries: Mapping[str, Entry]) -> None:
        """Take in who serves the address now."""
        for node, service in services.items():
            consumer = self.by_node.get(node)
            if consumer is None:
                consumer = self.by_node[node] = Consumer(self, node)
            entry = entries.get(node)
            if consumer.entry is not entry:
                consumer.entry = entry
                consumer.gone = False  # It was told anew since.
            if service is not None:
                consumer.weight, consumer.prefetch = max(1, service.consumers), service.prefetch
        self.consumers = [self.by_node[node] for node in services if not self.by_node[node].gone]
        for node in [node for node, consumer in self.by_node.items() if node not in services]:
            if not self.by_node[node].outstanding:
                del self.by_node[node]

    def drop_gone(self) -> None:
        """Leave out those who said that nobody subscribes there."""
        if any(consumer.gone for consumer in self.consumers):
            self.consumers = [consumer for consumer in self.consumers if not consumer.gone]

    def pick(self) -> Consumer | None:
        """Who gets the next message: the one with the least of ours to do, an idle one first, in turns."""
        consumers = self.consumers
        count = len(consumers)
        if count == 1:
            only = consumers[0]
            return None if only.link is None or only.full or only.gone or only.link.congested else only
        best: Consumer | None = None
        best_load = 0.0
        best_at = 0
        for step in range(count):
            at = (self.turn + step) % count
            consumer = consumers[at]
            if consumer.link is None or consumer.full or consumer.gone or consumer.link.congested:
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
        """Whether something waits at a server for a subscriber."""
        return any(consumer.queued for consumer in self.consumers)

    def to_recall(self) -> list[tuple[Consumer, int]]:
        """From whom to take back how many messages, since others have room for them."""
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
        """Put what was given back where it was: before what was sent later."""
        copies = sorted(copies, key=_number)
        if self.waiting and copies[-1].number > self.waiting[0].number:
            self.waiting = deque(sorted((*copies, *self.waiting), key=_number))
        else:
            self.waiting.extendleft(reversed(copies))

    def take_expired(self, now: float) -> list[Copy]:
        """Take out what waits for too long, or is not waited for any more."""
        expired = [copy for copy in self.waiting if copy.gives_up <= now]
        if expired or any(not copy.taken and copy.parcel.sent.done() for copy in self.waiting):
            self.waiting = deque(
                copy for copy in self.waiting if copy.gives_up > now and (copy.taken or not copy.parcel.sent.done())
            )
        return expired

    def is_unused(self, now: float, seconds: float) -> bool:
        """Whether it has had nothing to do for so long. Called every now and then."""
        if self.waiting or any(consumer.outstanding for consumer in self.by_node.values()):
            self.used = now
        return now - self.used > seconds


def _number(copy: Copy) -> int:
    return copy.number
