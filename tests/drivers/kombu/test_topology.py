from __future__ import annotations

import itertools
from typing import Any

import pytest

from msgbus import InvalidTarget
from msgbus.drivers.base import Address
from msgbus.drivers.kombu.stock import OPTIONS, StockOptions
from msgbus.drivers.kombu.topology import (
    DEFAULT_EXCHANGE,
    MAX_NAME,
    Exchange,
    NativeTopology,
    OsloTopology,
    Queue,
    Route,
    Topology,
)
from msgbus.target import MAX_NAME_BYTES

UNIQUE = "0123456789abcdef0123456789abcdef"
HOSTILE = ["a", "b", "a/b", "a.b", "!fanout", "!pool", "!dead", "%2F", "%21", "a%2Fb", "/", "!", "%", "a/!dead", "b.c"]


def native(*, quorum: bool = False, server_expires: int = 1800, queue_expires: int = 0) -> NativeTopology:
    """The native names."""
    return NativeTopology(quorum=quorum, server_expires=server_expires, queue_expires=queue_expires)


def stock(**given: Any) -> StockOptions:
    """The options of a stock peer: its defaults, but for those that are given."""
    return StockOptions(**({opt.dest: opt.default for opt in OPTIONS} | given))


def oslo(**given: Any) -> OsloTopology:
    """The names of a stock oslo.messaging, with options of it."""
    return OsloTopology(native(), stock(**given))


TOPIC = Address("topic", "msgbus", "foo")
SERVER = Address("server", "msgbus", "foo", "h1")
FANOUT = Address("fanout", "msgbus", "foo", "h1")
POOL = Address("pool", "msgbus", "foo", name="p")
DEAD = Address("dead", "msgbus", "foo")
INBOX = Address("inbox", name="reply_1")


@pytest.mark.parametrize(
    ("address", "name", "key"),
    [
        (TOPIC, "msgbus/foo", "foo"),
        (SERVER, "msgbus/foo/h1", "foo/h1"),
        (FANOUT, f"msgbus/foo/!fanout/h1.{UNIQUE}", "foo/!fanout"),
        (POOL, "msgbus/foo/!pool/p", "foo"),
        (DEAD, "msgbus/foo/!dead", None),
        (INBOX, "reply_1", None),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_native_names(address: Address, name: str, key: str | None) -> None:
    """Queues and binding keys are called what the module's table says."""
    queue = native().queue(address, UNIQUE)
    assert (queue.name, queue.key) == (name, key)
    assert queue.exchange == (DEFAULT_EXCHANGE if key is None else Exchange("msgbus", "direct", True, False))


@pytest.mark.parametrize("quorum", [True, False])
@pytest.mark.parametrize(
    ("address", "expires", "own"),
    [
        (TOPIC, 0, False),
        (SERVER, 1800, False),
        (FANOUT, 60, True),
        (POOL, 0, False),
        (DEAD, 0, False),
        (INBOX, 60, True),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_native_lifetimes(address: Address, expires: int, own: bool, quorum: bool) -> None:
    """What belongs to one process goes a minute after it; every queue is a quorum queue, where that is asked for."""
    queue = native(quorum=quorum).queue(address, UNIQUE)
    arguments: dict[str, object] = {"x-expires": expires * 1000} if expires else {}
    if quorum:
        arguments["x-queue-type"] = "quorum"
        arguments["x-delivery-limit"] = 2**31 - 1
    assert queue.arguments == arguments
    assert queue.own is own
    assert queue.durable


def test_native_expiry_options() -> None:
    """The options say after how long queues that nobody uses go; 0 means never."""
    topology = native(server_expires=0, queue_expires=7)
    assert topology.queue(SERVER, UNIQUE).arguments == {}
    for address in (TOPIC, POOL):
        assert topology.queue(address, UNIQUE).arguments == {"x-expires": 7000}
    assert topology.queue(DEAD, UNIQUE).arguments == {}


@pytest.mark.parametrize("address", [TOPIC, SERVER, FANOUT], ids=lambda address: address.kind)
@pytest.mark.parametrize("topology", [native(), oslo()], ids=["native", "oslo"])
def test_what_is_sent_reaches_the_queue(address: Address, topology: Topology) -> None:
    """A message goes to the exchange, declared alike, and with a key that reaches the address's queue."""
    route, queue = topology.route(address), topology.queue(address, UNIQUE)
    assert route.exchange == queue.exchange
    assert route.exchange.kind == "fanout" or route.key == queue.key


@pytest.mark.parametrize("topology", [native(), oslo()], ids=["native", "oslo"])
@pytest.mark.parametrize("address", [DEAD, INBOX], ids=lambda address: address.kind)
def test_what_is_sent_through_the_default_exchange(address: Address, topology: Topology) -> None:
    """A reply and a dead letter go to the queue by its name; that of dead letters is declared by who sends there."""
    route, queue = topology.route(address), topology.queue(address, UNIQUE)
    assert (route.exchange, route.key) == (DEFAULT_EXCHANGE, queue.name)
    assert route.queue == (queue if address.kind == "dead" else None)


def test_a_pool_gets_what_is_sent_to_its_topic() -> None:
    """A pool's queue is bound like the topic's own."""
    pool = native().queue(POOL, UNIQUE)
    assert (pool.exchange, pool.key) == native().route(TOPIC)[:2]


def addresses(names: list[str]) -> list[Address]:
    """All addresses that can be made of some names."""
    found = [Address("inbox", name=f"reply_{name}") for name in ("1", "2")]
    for exchange, topic in itertools.product(names, names):
        found += [Address("topic", exchange, topic), Address("dead", exchange, topic)]
        found += [Address("server", exchange, topic, server) for server in names]
        found += [Address("fanout", exchange, topic, server) for server in names]
        found += [Address("pool", exchange, topic, name=name) for name in names]
    return found


def test_no_two_addresses_share_a_queue() -> None:
    """Whatever names are made of, each address has a queue of its own."""
    names: dict[str, Address] = {}
    for address in addresses(HOSTILE):
        name = native().queue(address, UNIQUE).name
        assert names.setdefault(name, address) == address


def test_no_two_addresses_share_a_key() -> None:
    """Within an exchange, what is sent to one address is not bound to the queue of another (but for pools)."""
    routes: dict[tuple[str, str], tuple[str, str, str, str]] = {}
    for address in addresses(HOSTILE):
        if address.kind == "pool":
            continue
        queue = native().queue(address, UNIQUE)
        if queue.key is not None:
            receiver = (
                address.kind,
                address.exchange,
                address.topic,
                "" if address.kind == "fanout" else address.server,
            )
            assert routes.setdefault((queue.exchange.name, queue.key), receiver) == receiver


def test_two_subscriptions_of_one_server_have_two_fanout_queues() -> None:
    """A fanout queue belongs to one subscription, even where two use the same server's name."""
    for topology in (native(), oslo()):
        assert topology.queue(FANOUT, "1").name != topology.queue(FANOUT, "2").name


@pytest.mark.parametrize("topology", [native(), oslo()], ids=["native", "oslo"])
@pytest.mark.parametrize(
    "address",
    [
        Address("topic", "x", "t" * 256),
        Address("server", "x", "t" * 128, "s" * 128),
        Address("fanout", "x", "t" * 256, "s"),
        Address("dead", "x", "t" * 256),
        Address("topic", "x", "ä" * 128),
    ],
    ids=lambda address: address.kind,
)
def test_names_that_are_too_long(address: Address, topology: Topology) -> None:
    """A name of more than 255 bytes, which RabbitMQ cannot take, is InvalidTarget for sender and receiver."""
    with pytest.raises(InvalidTarget, match="255 bytes"):
        topology.route(address)
    with pytest.raises(InvalidTarget, match="255 bytes"):
        topology.queue(address, UNIQUE)


@pytest.mark.parametrize(
    ("address", "fits"),
    [
        (Address("topic", "x" * 100, "t" * 154), True),
        (Address("topic", "x" * 100, "t" * 155), False),
        (Address("topic", "x" * 100, "/" * 51 + "t"), True),
        (Address("topic", "x" * 100, "/" * 51 + "tt"), False),
    ],
)
def test_the_limit_is_exact(address: Address, fits: bool) -> None:
    """A name of 255 bytes, with what escaping adds, is taken; one byte more is not."""
    if fits:
        assert len(native().queue(address, UNIQUE).name) == MAX_NAME
    else:
        with pytest.raises(InvalidTarget):
            native().queue(address, UNIQUE)


@pytest.mark.parametrize("kind", ["topic", "server", "fanout", "dead"])
def test_the_longest_names_of_a_target_fit(kind: str) -> None:
    """Names of a target that are as long as a target lets them be have a queue in RabbitMQ."""
    name = "n" * MAX_NAME_BYTES
    server = name if kind in ("server", "fanout") else ""
    address = Address(kind, name, name, server)  # type: ignore[arg-type]  # a Kind
    assert len(native().queue(address, "u" * 16).name) <= MAX_NAME


# A stock oslo.messaging's names, flags and arguments: all have to agree, or RabbitMQ refuses the second declaration.

OPENSTACK = Exchange("openstack", "topic", durable=False, auto_delete=False)
FANOUT_EXCHANGE = Exchange("foo_fanout", "fanout", durable=False, auto_delete=True)


@pytest.mark.parametrize(
    ("address", "queue"),
    [
        (TOPIC, Queue("foo", OPENSTACK, "foo", durable=False, arguments={}, own=False)),
        (SERVER, Queue("foo.h1", OPENSTACK, "foo.h1", durable=False, arguments={}, own=False)),
        (
            FANOUT,
            Queue(f"foo_fanout_{UNIQUE}", FANOUT_EXCHANGE, "foo", False, {"x-expires": 1800000}, own=True),
        ),
        (INBOX, Queue("reply_1", DEFAULT_EXCHANGE, None, False, {"x-expires": 1800000}, own=True)),
        (POOL, Queue("p", OPENSTACK, "foo", durable=False, arguments={}, own=False)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_oslo_queues(address: Address, queue: Queue) -> None:
    """Queues, exchanges and bindings are declared exactly as a stock oslo.messaging declares them."""
    assert oslo().queue(address, UNIQUE) == queue


@pytest.mark.parametrize(
    ("address", "route"),
    [
        (TOPIC, Route(OPENSTACK, "foo", home=oslo().queue(TOPIC, "")._replace(key=None))),
        (SERVER, Route(OPENSTACK, "foo.h1", home=oslo().queue(SERVER, "")._replace(key=None))),
        (Address("fanout", "msgbus", "foo"), Route(FANOUT_EXCHANGE, "")),
        (INBOX, Route(DEFAULT_EXCHANGE, "reply_1", home=oslo().queue(INBOX, ""))),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_oslo_routes(address: Address, route: Route) -> None:
    """Requests go to the topic exchange or with an empty key to the topic's fanout exchange, replies to the queue."""
    assert oslo().route(address) == route


def test_oslo_exchange_of_a_target() -> None:
    """An exchange that a target names keeps its name; it does not enter that of the fanout, which has the topic's."""
    assert oslo().route(TOPIC._replace(exchange="nova")).exchange.name == "nova"
    assert oslo().route(FANOUT._replace(exchange="nova")).exchange == FANOUT_EXCHANGE


QUORUM = {"x-queue-type": "quorum"}
LIMITED = {**QUORUM, "x-delivery-limit": 7, "x-max-in-memory-length": 8, "x-max-in-memory-bytes": 9}
LIMITS = {
    "rabbit_quorum_delivery_limit": 7,
    "rabbit_quorum_max_memory_length": 8,
    "rabbit_quorum_max_memory_bytes": 9,
}


@pytest.mark.parametrize(
    ("options", "topic", "transient"),
    [
        ({}, (False, False, {}), (False, {"x-expires": 1800000})),
        ({"amqp_durable_queues": True}, (True, False, {}), (False, {"x-expires": 1800000})),
        ({"amqp_auto_delete": True}, (False, True, {}), (False, {"x-expires": 1800000})),
        ({"rabbit_quorum_queue": True}, (True, False, QUORUM), (False, {"x-expires": 1800000})),
        ({"rabbit_quorum_queue": True, **LIMITS}, (True, False, LIMITED), (False, {"x-expires": 1800000})),
        ({"rabbit_transient_quorum_queue": True}, (False, False, {}), (True, {**QUORUM, "x-expires": 1800000})),
        (
            {"rabbit_transient_quorum_queue": True, "rabbit_transient_queues_ttl": 0, **LIMITS},
            (False, False, {}),
            (True, LIMITED),
        ),
        ({"rabbit_transient_queues_ttl": 60}, (False, False, {}), (False, {"x-expires": 60000})),
    ],
)
def test_options_of_stock_peers(
    options: dict[str, Any], topic: tuple[bool, bool, dict[str, Any]], transient: tuple[bool, dict[str, Any]]
) -> None:
    """Each option of a stock peer changes what it changes there.

    That is durable, auto_delete and the arguments of queues of topics and servers, with their exchange; and durable and
    the arguments of those of fanouts and replies.
    """
    topology = oslo(**options)
    for address in (TOPIC, SERVER, POOL):
        queue = topology.queue(address, UNIQUE)
        assert (queue.durable, queue.auto_delete, queue.arguments) == topic
        assert queue.exchange == Exchange("openstack", "topic", topic[0], topic[1])
        assert address is POOL or topology.route(address).exchange == queue.exchange
    for address in (FANOUT, INBOX):
        queue = topology.queue(address, UNIQUE)
        assert (queue.durable, queue.arguments) == transient
        assert not queue.auto_delete
    assert topology.route(FANOUT).exchange == Exchange("foo_fanout", "fanout", transient[0], True)


@pytest.mark.parametrize(("seconds", "arguments"), [(1800, {"x-max-age": "1800s"}), (0, {})])
def test_a_stream_of_fanouts(seconds: int, arguments: dict[str, Any]) -> None:
    """With rabbit_stream_fanout all servers of a topic read one stream, which no server deletes."""
    topology = oslo(rabbit_stream_fanout=True, rabbit_transient_quorum_queue=True, rabbit_transient_queues_ttl=seconds)
    exchange = Exchange("foo_fanout", "fanout", True, True)
    arguments = {"x-queue-type": "stream", **arguments}
    assert topology.queue(FANOUT, UNIQUE) == Queue("foo_fanout", exchange, "foo", True, arguments, own=False)
    assert topology.queue(FANOUT, UNIQUE).is_stream
    assert topology.route(FANOUT) == Route(exchange, "")


def test_oslo_dead_letters_are_durable() -> None:
    """Dead letters, which a stock peer does not have, are kept as in the native topology."""
    assert oslo().queue(DEAD, UNIQUE) == native().queue(DEAD, UNIQUE)


@pytest.mark.parametrize("oslo", [False, True])
def test_stored_is_the_topic_with_its_queue_declared_by_the_sender(oslo: bool) -> None:
    """It goes the way of the topic; the queue is the one that a subscriber will declare, word for word."""
    native = NativeTopology(quorum=False, server_expires=1800, queue_expires=7)
    topology: Topology = OsloTopology(native, stock()) if oslo else native
    topic = Address("topic", "msgbus", "foo")
    stored = topology.route(topic._replace(kind="stored"))
    assert stored._replace(queue=None) == topology.route(topic)
    assert stored.queue == topology.queue(topic, "")
