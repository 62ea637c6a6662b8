"""What an address is called in RabbitMQ, and how its queue and exchange are declared.

``native`` (the default): one direct exchange for each exchange of a target, durable queues. Parts of a name are joined
by slashes, and a slash within a part is escaped, so that no two addresses share a name::

    address                    queue                          bound to the exchange with key
    topic foo, stored foo      msgbus/foo                     foo
    server h1 of foo           msgbus/foo/h1                  foo/h1
    fanout of foo              msgbus/foo/!fanout/h1.<id>     foo/!fanout
    pool p of foo              msgbus/foo/!pool/p             foo
    dead letters of foo        msgbus/foo/!dead               (default exchange)
    inbox                      reply_<id>                     (default exchange)

A consumer of a pool also declares an exchange ``msgbus/foo/!pools``. Nothing is sent through it: its existence shows
senders that messages to foo go to more than one queue.

``oslo``: the names and arguments of a stock oslo.messaging, so that its services and ours can call each other. Its own
options say more about them: see `msgbus.drivers.kombu.stock`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from msgbus.drivers.base import Address
from msgbus.drivers.kombu.stock import StockOptions
from msgbus.exceptions import InvalidTarget

MAX_NAME = 255
"""Bytes of a short string of AMQP 0-9-1, which every name is."""
TRANSIENT_EXPIRES = 60
"""Seconds that the queue of a fanout or inbox is kept while its owner is away."""


class Exchange(NamedTuple):
    """How an exchange is declared. The default exchange, which has no name, is not."""

    name: str
    kind: str
    durable: bool
    auto_delete: bool


class Queue(NamedTuple):
    """The queue of a subscribed address.

    Attributes:
        key: the key with which it is bound to the exchange; None: it is not bound.
        own: it belongs to one process, which deletes it when it closes its consumer.
        pools: of a pool's queue, the exchange that shows senders that the topic has pools; else None.
        auto_delete: RabbitMQ deletes it when its last consumer leaves.
    """

    name: str
    exchange: Exchange
    key: str | None
    durable: bool
    arguments: dict[str, Any]
    own: bool
    pools: Exchange | None = None
    auto_delete: bool = False

    @property
    def is_quorum(self) -> bool:
        """Whether RabbitMQ keeps it on several nodes."""
        return self.arguments.get("x-queue-type") == "quorum"

    @property
    def is_stream(self) -> bool:
        """Whether it is a log that all consumers read. What they acknowledge stays in it."""
        return self.arguments.get("x-queue-type") == "stream"

    @property
    def not_durable(self) -> Queue:
        """The same, and its exchange, as they go with a restart of RabbitMQ."""
        return self._replace(durable=False, exchange=self.exchange._replace(durable=False))


class Route(NamedTuple):
    """Where a message to an address is published.

    Attributes:
        queue: to be declared by the sender, since it has to be there before anybody listens; or None.
        home: the queue of the address, if the sender knows its name.
        pools: the exchange that exists if the topic has pools: then a message goes to other queues too.
    """

    exchange: Exchange
    key: str
    queue: Queue | None = None
    home: Queue | None = None
    pools: Exchange | None = None


_NO_LIMIT = 2**31 - 1
"""By default RabbitMQ 4 drops a message in a quorum queue after 20 deliveries. Older versions do not accept a negative
limit, which would mean none."""
DEFAULT_EXCHANGE = Exchange("", "direct", durable=True, auto_delete=False)


class NativeTopology:
    """See the module's text."""

    def __init__(self, *, quorum: bool, server_expires: int, queue_expires: int) -> None:
        """Keep the options: whether to use quorum queues; seconds after which unused queues expire, 0: never."""
        # The arguments of all queues; those that expire have one more.
        self._arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": _NO_LIMIT} if quorum else {}
        self._server_expires = _expires(server_expires)
        self._queue_expires = _expires(queue_expires)

    def route(self, address: Address) -> Route:
        """Where a message to `address` is published.

        Raises:
            InvalidTarget: the name is too long for RabbitMQ.
        """
        if address.kind == "fanout":
            return Route(_exchange(address), _key(address))
        home = self.queue(address, "")
        if address.kind == "inbox":
            return Route(DEFAULT_EXCHANGE, _checked(address.name, address), home=home)
        if address.kind == "dead":
            return Route(DEFAULT_EXCHANGE, _dead(address), home, home)
        pools = None if address.kind == "server" else _pools(address)
        return Route(_exchange(address), _key(address), home if address.kind == "stored" else None, home, pools)

    def queue(self, address: Address, unique: str) -> Queue:
        """The queue that is consumed from; `unique` distinguishes the queues that belong to one process.

        Raises:
            InvalidTarget: the name is too long for RabbitMQ.
        """
        parts = [_escape(address.exchange), _escape(address.topic)]
        transient = {**self._arguments, **_expires(TRANSIENT_EXPIRES)}
        if address.kind == "inbox":
            return Queue(address.name, DEFAULT_EXCHANGE, None, True, transient, True)
        pools = None
        if address.kind == "fanout":
            parts += ["!fanout", f"{_escape(address.server)}.{unique}"]
            arguments = transient
        elif address.kind == "server":
            parts.append(_escape(address.server))
            arguments = {**self._arguments, **self._server_expires}
        elif address.kind == "pool":
            parts += ["!pool", _escape(address.name)]
            arguments = {**self._arguments, **self._queue_expires}
            pools = _pools(address)
        elif address.kind == "dead":
            return Queue(_dead(address), DEFAULT_EXCHANGE, None, True, dict(self._arguments), False)
        else:
            arguments = {**self._arguments, **self._queue_expires}
        name = _checked("/".join(parts), address)
        return Queue(name, _exchange(address), _key(address), True, arguments, address.kind == "fanout", pools)


class OsloTopology:
    """See the module's text. The queue of a pool has the pool's name, whatever its topic, as with a stock peer.

    Dead letters, which such a peer does not have, are as in `native`.
    """

    def __init__(self, native: NativeTopology, stock: StockOptions) -> None:
        self._native = native
        self._stock = stock
        self._arguments: dict[str, Any] = stock.quorum_arguments if stock.rabbit_quorum_queue else {}
        self._transient: dict[str, Any] = {
            **(stock.quorum_arguments if stock.rabbit_transient_quorum_queue else {}),
            **_expires(stock.rabbit_transient_queues_ttl),
        }

    def route(self, address: Address) -> Route:
        """As in `NativeTopology`."""
        if address.kind == "dead":
            return self._native.route(address)
        if address.kind == "inbox":
            return Route(DEFAULT_EXCHANGE, _checked(address.name, address), home=self.queue(address, ""))
        if address.kind == "fanout":
            return Route(self._fanout(address), "")
        queue = self.queue(address, "")
        # A queue's name does not say its exchange. So no sender binds it again: it may belong to another exchange.
        home = queue._replace(key=None)
        return Route(self._exchange(address), _oslo_key(address), queue if address.kind == "stored" else None, home)

    def queue(self, address: Address, unique: str) -> Queue:
        """As in `NativeTopology`."""
        stock = self._stock
        durable = stock.rabbit_transient_quorum_queue
        if address.kind == "inbox":
            return Queue(address.name, DEFAULT_EXCHANGE, None, durable, self._transient, True)
        if address.kind == "fanout":
            exchange = self._fanout(address)
            if stock.rabbit_stream_fanout:
                arguments = {"x-queue-type": "stream", **_max_age(stock.rabbit_transient_queues_ttl)}
                return Queue(exchange.name, exchange, address.topic, True, arguments, False)
            name = _checked(f"{exchange.name}_{unique}", address)
            return Queue(name, exchange, address.topic, durable, self._transient, True)
        if address.kind == "dead":
            return self._native.queue(address, unique)
        name = _checked(address.name if address.kind == "pool" else _oslo_key(address), address)
        return Queue(
            name,
            self._exchange(address),
            _oslo_key(address),
            stock.durable,
            self._arguments,
            False,
            auto_delete=stock.amqp_auto_delete,
        )

    def _exchange(self, address: Address) -> Exchange:
        name = "openstack" if address.exchange == "msgbus" else address.exchange
        return Exchange(name, "topic", durable=self._stock.durable, auto_delete=self._stock.amqp_auto_delete)

    def _fanout(self, address: Address) -> Exchange:
        name = _checked(f"{address.topic}_fanout", address)
        return Exchange(name, "fanout", durable=self._stock.rabbit_transient_quorum_queue, auto_delete=True)


Topology = NativeTopology | OsloTopology


def _expires(seconds: int) -> dict[str, Any]:
    return {"x-expires": seconds * 1000} if seconds else {}


def _max_age(seconds: int) -> dict[str, Any]:
    return {"x-max-age": f"{seconds}s"} if seconds else {}


def _escape(part: str) -> str:
    return part.replace("%", "%25").replace("/", "%2F").replace("!", "%21")


def _checked(name: str, address: Address) -> str:
    if len(name.encode()) > MAX_NAME:
        raise InvalidTarget(f"its name in RabbitMQ would be longer than {MAX_NAME} bytes", str(address))
    return name


def _dead(address: Address) -> str:
    return _checked(f"{_escape(address.exchange)}/{_escape(address.topic)}/!dead", address)


def _pools(address: Address) -> Exchange | None:
    name = f"{_escape(address.exchange)}/{_escape(address.topic)}/!pools"
    if len(name.encode()) > MAX_NAME:
        return None  # Then the name of a pool's queue is too long as well: there are none.
    return Exchange(name, "fanout", durable=True, auto_delete=False)


def _exchange(address: Address) -> Exchange:
    return Exchange(_checked(address.exchange, address), "direct", durable=True, auto_delete=False)


def _key(address: Address) -> str:
    key = _escape(address.topic)
    if address.kind == "server":
        key = f"{key}/{_escape(address.server)}"
    elif address.kind == "fanout":
        key = f"{key}/!fanout"
    return _checked(key, address)


def _oslo_key(address: Address) -> str:
    return _checked(f"{address.topic}.{address.server}" if address.kind == "server" else address.topic, address)
