"""The driver newdriver. It works as it is: messages move within one process, in memory.

`BrokerDriver` supplies what every driver of a broker needs: messages wait for a connection until their deadline, it
reconnects and restores inboxes and subscriptions, closes, and survives forks. The rest is here, in three classes, on
top of `_System`, a stand-in for the broker. Make it yours in steps, with the checks passing after each:

1. `NewdriverDriver`: where your broker is and how to connect. `dial` returns a connection of yours.
2. `_Session`, verb by verb: `start`, `publish`, then `consume`, with `_Feed`. Then `_System` goes.
3. `capabilities`: declare what your broker keeps, one by one; each brings its own checks.

"Write a driver" in the documentation goes through it, with a driver that talks to a broker over a socket. What is
public for drivers is what `msgbus.drivers.base.PUBLIC` names.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from urllib.parse import quote

from oslo_config import cfg

from msgbus.drivers.base import Address, Capability, Message, Sent
from msgbus.drivers.toolkit.broker import BrokerDriver
from msgbus.drivers.toolkit.consuming import Feed, Outcome, Source
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.drivers.toolkit.sending import Offer, OnDeclared, Outgoing
from msgbus.drivers.toolkit.session import Line, Session
from msgbus.options import connection_opts, hosts_of, read_driver_options
from msgbus.url import TransportHost, TransportURL


class NewdriverDriver(BrokerDriver):
    """Where the broker is, and how to connect to it."""

    contract = (2, 0)  # The version of the contract that this was written for.
    capabilities = frozenset({Capability.ORDERED, Capability.REQUEUE, Capability.STORAGE})

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_newdriver", [
            *connection_opts({}, {"port": 7070}),
            cfg.IntOpt("max_message_size", default=16 * 1024 * 1024, min=1, help="The largest message, in bytes."),
        ]

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, loop: Loop) -> None:
        # No I/O and no thread here: the connection is opened when something first needs it.
        self._options = options = read_driver_options(conf, *self.options(), url)
        self._virtual_host: str = url.virtual_host or options.virtual_host or ""
        self.max_message_size = options.max_message_size
        super().__init__(loop, hosts_of(options, url))

    def describe(self, host: TransportHost) -> str:
        return f"newdriver at {host.hostname or 'localhost'}:{host.port}/{self._virtual_host}"

    def dial(self, host: TransportHost, purpose: str) -> _System:
        # Here a library would connect: with no retries, no reconnect and no offline buffer of its own.
        system = system_at(self.describe(host))
        if not system.up:
            raise ConnectionRefusedError("nobody listens there")
        return system

    def discard(self, connection: _System) -> None:
        pass  # Close it.

    def open_session(self, line: Line, connection: _System) -> Session:
        return _Session(self.loop, line, connection)


def key_of(address: Address) -> str:
    """What a message to an address is sent to: all queues of that key get a copy. A pool gets what is for its topic."""
    kind, exchange, topic, server, name = address
    own = {"server": server, "inbox": name}.get(kind, "")
    parts = ("topic" if kind in ("pool", "stored") else kind, exchange, topic, own)
    return "/".join(quote(part, safe="") for part in parts)  # Different addresses have different keys.


def queue_of(address: Address, unique: str = "") -> str:
    """The name of an address's queue. The queue of a fanout has a single subscriber."""
    pool = f"/pool/{quote(address.name, safe='')}"
    return key_of(address) + {"pool": pool, "fanout": f"/{unique}"}.get(address.kind, "")


class _Session(Session):
    """One connection."""

    def __init__(self, loop: Loop, line: Line, system: _System) -> None:
        self.loop = loop
        self.system = system
        self._line = line
        self._declared: set[Address] = set()

    def start(self) -> None:
        self.system.sessions.add(self)
        self._line.serve("a broker in memory")
        self._line.sendable()

    def publish(self, outgoing: Outgoing) -> Offer:
        if outgoing.address.kind in ("stored", "dead") and outgoing.address not in self._declared:
            return Offer.UNDECLARED  # The queue may not be there, as nobody may ever have subscribed.
        reached = self.system.put(key_of(outgoing.address), outgoing.message, outgoing.expires)
        self.loop.call(self._answered, outgoing, reached)  # Later: the caller holds a lock.
        return Offer.SENT

    def _answered(self, outgoing: Outgoing, reached: int) -> None:
        """The broker says into how many queues a message went."""
        if outgoing.mandatory and not reached:
            outgoing.undeliverable(f"nobody listens at {outgoing.address}")
        else:
            outgoing.confirmed(Sent(reached))

    def declare(self, address: Address, declared: OnDeclared) -> None:
        self.system.declare(queue_of(address), key_of(address))
        self._declared.add(address)
        declared()

    def consume(self, source: Source) -> Feed:
        return _Feed(self, source)

    def lose(self) -> None:
        """The connection is broken, unless there is another by now."""
        if self in self.system.sessions:
            self._line.lose(ConnectionResetError("the connection was cut"))

    def let_go(self) -> None:
        self.system.sessions.discard(self)

    def abandon(self) -> None:
        pass  # In a forked child: drop the parent's socket without writing to it.


class _Feed(Feed):
    """One address over one connection."""

    def __init__(self, session: _Session, source: Source) -> None:
        self.session = session
        self.name = queue_of(source.address, source.unique)
        self.queue = session.system.declare(self.name, key_of(source.address))
        self.is_own = source.address.kind in ("fanout", "inbox")
        self.prefetch = source.prefetch or FOREVER
        self.open: dict[int, _Item] = {}
        self.alive = True
        self._source = source

    def start(self) -> None:
        self.session.system.consume(self)
        self._source.active(self)

    def on_message(self, tag: int, item: _Item) -> None:
        """The broker delivers a message."""
        if not self.alive:
            return  # It has been given back meanwhile.
        sent, ttl = item.message, None if item.expires == FOREVER else item.expires - Loop.now()
        message = Message(sent.body, sent.content_type, sent.id, ttl, sent.durable)
        self._source.deliver(self, tag, message, item.redelivered)
        if self._source.address.kind == "inbox":
            self.settle(tag, Outcome.ACCEPT)  # Nobody else does.

    def settle(self, tag: int, outcome: Outcome) -> bool:
        return self.session.system.settle(self, tag, outcome)

    def cancel(self) -> None:
        self.session.system.cancel(self)
        self.session.loop.call(self._source.cancelled, self)  # After the deliveries that are on their way.

    def close(self) -> None:
        self.end()
        self.session.loop.call(self._source.closed, self)

    def end(self) -> None:
        self.session.system.end(self)


# STEP 2: the rest stands in for the broker. The threads of many drivers call it; it calls back on their loops.


class _Item:
    """A message that waits, or was delivered and is not settled."""

    def __init__(self, message: Message, expires: float) -> None:
        self.message, self.expires, self.redelivered = message, expires, False


class _Queue:
    """What waits, and who takes it."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.waiting: deque[_Item] = deque()
        self.feeds: list[_Feed] = []


class _System:
    """A broker in memory. Queues are kept, except those of fanouts and inboxes."""

    def __init__(self) -> None:
        self.up = True
        self.sessions: set[_Session] = set()
        self._lock = threading.RLock()
        self._queues: dict[str, _Queue] = {}
        self._tags = itertools.count(1)

    def cut(self) -> None:
        """Break all connections."""
        for session in list(self.sessions):
            session.loop.call(session.lose)

    def declare(self, name: str, key: str) -> _Queue:
        """Create a queue, unless it exists."""
        with self._lock:
            return self._queues.setdefault(name, _Queue(key))

    def put(self, key: str, message: Message, expires: float) -> int:
        """Put a message into all queues of a key; return their number."""
        with self._lock:
            found = [queue for queue in self._queues.values() if queue.key == key]
            for queue in found:
                queue.waiting.append(_Item(message, expires))
                self._deliver(queue)
            return len(found)

    def consume(self, feed: _Feed) -> None:
        """Start delivering to a feed."""
        with self._lock:
            feed.queue.feeds.append(feed)
            self._deliver(feed.queue)

    def settle(self, feed: _Feed, tag: int, outcome: Outcome) -> bool:
        """Remove a message, or give it back for another feed. False: the feed has ended."""
        with self._lock:
            if feed.alive and (item := feed.open.pop(tag, None)) is not None:
                self._give_back(feed.queue, [item] if outcome is Outcome.REQUEUE else [])
            return feed.alive

    def cancel(self, feed: _Feed) -> None:
        """Stop delivering to a feed."""
        with self._lock:
            if feed in feed.queue.feeds:
                feed.queue.feeds.remove(feed)

    def end(self, feed: _Feed) -> None:
        """Stop delivering to a feed, and give its unsettled messages to others."""
        with self._lock:
            self.cancel(feed)
            if feed.is_own and feed.alive:
                self._queues.pop(feed.name, None)
            feed.alive = False
            self._give_back(feed.queue, feed.open.values())
            feed.open.clear()

    def _give_back(self, queue: _Queue, items: Iterable[_Item]) -> None:
        for item in reversed(list(items)):
            item.redelivered = True
            queue.waiting.appendleft(item)
        self._deliver(queue)

    def _deliver(self, queue: _Queue) -> None:
        """Deliver the waiting messages to the feeds that have room, in turn."""
        while queue.waiting and (roomy := [feed for feed in queue.feeds if len(feed.open) < feed.prefetch]):
            feed, item, tag = roomy[0], queue.waiting.popleft(), next(self._tags)
            queue.feeds.remove(feed)
            queue.feeds.append(feed)  # Who was just served is the last.
            feed.open[tag] = item
            feed.session.loop.call(feed.on_message, tag, item)


@cache
def system_at(name: str) -> _System:
    """The broker of that name. All drivers of a process share it."""
    return _System()


os.register_at_fork(after_in_child=system_at.cache_clear)
