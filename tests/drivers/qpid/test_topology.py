"""msgbus.drivers.qpid.topology: what addresses are called on Qpid."""

from __future__ import annotations

import itertools

import pytest

from msgbus.drivers.base import Address
from msgbus.drivers.qpid.topology import MAX_NAME, Route, Source, route, source
from msgbus.exceptions import InvalidTarget

TOPIC = Address("topic", "msgbus", "foo")
SERVER = Address("server", "msgbus", "foo", server="h1")
FANOUT = Address("fanout", "msgbus", "foo", server="h1")
POOL = Address("pool", "msgbus", "foo", name="p")
DEAD = Address("dead", "msgbus", "foo")
INBOX = Address("inbox", name="0123abcd")
STORED = Address("stored", "msgbus", "foo")
ALL = (TOPIC, SERVER, FANOUT, POOL, DEAD, INBOX)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (TOPIC, Source("msgbus:foo", "msgbus", "msgbus:foo", "foo")),
        (SERVER, Source("msgbus:foo:h1", "msgbus", "msgbus:foo:h1", "foo:h1")),
        (FANOUT, Source("msgbus/foo:!fanout", "msgbus")),
        (POOL, Source("msgbus:foo:!pool:p", "msgbus", "msgbus:foo:!pool:p", "foo")),
        (DEAD, Source("msgbus:foo:!dead", None, "msgbus:foo:!dead")),
        (INBOX, Source("msgbus:!inboxes/0123abcd", "msgbus:!inboxes")),
    ],
    ids=lambda value: value.kind if isinstance(value, Address) else "",
)
def test_where_addresses_are_received_from(address: Address, expected: Source) -> None:
    """Each kind has its node, with the exchange and queue that have to be there."""
    assert source(address) == expected


@pytest.mark.parametrize(
    ("address", "to"),
    [
        (TOPIC, "msgbus/foo"),
        (SERVER, "msgbus/foo:h1"),
        (FANOUT._replace(server=""), "msgbus/foo:!fanout"),
        (INBOX, "msgbus:!inboxes/0123abcd"),
    ],
    ids=lambda value: value.kind if isinstance(value, Address) else "",
)
def test_where_messages_go(address: Address, to: str) -> None:
    """A message goes to a key of an exchange, and its sender declares nothing."""
    assert route(address) == Route(to)


@pytest.mark.parametrize("address", [TOPIC, SERVER, POOL], ids=lambda address: address.kind)
def test_what_is_sent_reaches_the_queue(address: Address) -> None:
    """The queue of an address is bound to the exchange with the key to which its messages are sent."""
    sent_to = TOPIC if address.kind == "pool" else address
    found = source(address)
    assert route(sent_to).to == f"{found.exchange}/{found.key}"


def test_stored_is_the_topic_with_its_queue_declared_by_the_sender() -> None:
    """What is stored for a topic goes where its subscribers will look for it."""
    assert route(STORED) == Route("msgbus/foo", source(TOPIC))


def test_dead_letters_are_declared_by_the_sender() -> None:
    """Nobody has to have listened to dead letters before the first of them."""
    assert route(DEAD) == Route("msgbus:foo:!dead", source(DEAD))


def test_only_the_queue_of_a_server_may_go_with_it() -> None:
    """The option is about servers; what is shared is kept in any case."""
    kept = {address.kind: source(address, keep_servers=False).kept for address in (TOPIC, SERVER, POOL, DEAD)}
    assert kept == {"topic": True, "server": False, "pool": True, "dead": True}


def test_the_queue_of_a_topic_may_go_with_its_last_server() -> None:
    """That option is about topics; pools and dead letters are kept in any case."""
    kept = {address.kind: source(address, keep_topics=False).kept for address in (TOPIC, SERVER, POOL, DEAD)}
    assert kept == {"topic": False, "server": True, "pool": True, "dead": True}


NAMES = [
    "foo",
    "foo:h1",
    "foo/h1",
    "!fanout",
    "!pool:p",
    "a b",
    "a+b",
    "a%20b",
    "a=20b",
    "ä",
    "漢",
    "#",
    "*",
    "amq",
    "%",
    ".",
]


def test_no_two_addresses_share_a_node() -> None:
    """Whatever is in the names, nobody gets what is meant for another."""
    addresses = [
        Address(kind, exchange, topic, server=name if kind == "server" else "", name=name if kind == "pool" else "")
        for kind in ("topic", "server", "fanout", "pool", "dead")
        for exchange, topic in itertools.product(NAMES[:8], NAMES)
        for name in (NAMES if kind in ("server", "pool") else [""])
    ]
    nodes = [source(address).address for address in addresses] + [source(INBOX).address]
    assert len(set(nodes)) == len(nodes)
    exchanges = {source(address).exchange for address in addresses}
    queues = {source(address).queue for address in addresses if source(address).queue}
    assert not exchanges & queues


@pytest.mark.parametrize("name", NAMES)
def test_names_are_plain(name: str) -> None:
    """What the broker sees of a name is ASCII, without what has a meaning in an address or a path."""
    for address in (
        Address("topic", name, name),
        Address("server", name, name, server=name),
        Address("pool", name, name, name=name),
    ):
        node = source(address).address
        assert node.isascii()
        assert not set(node) & set("/#*% \\")
        assert route(Address("topic", name, name)).to.count("/") == 1


@pytest.mark.parametrize("exchange", ["", "amq.direct", "qpid.x"])
def test_exchanges_of_the_broker_are_refused(exchange: str) -> None:
    """They silently drop messages for which nothing is bound."""
    with pytest.raises(InvalidTarget):
        source(Address("topic", exchange, "foo"))


@pytest.mark.parametrize("address", ALL, ids=lambda address: address.kind)
def test_names_that_are_too_long(address: Address) -> None:
    """They are refused with the address in the text."""
    long = "x" * (MAX_NAME + 1)
    with pytest.raises(InvalidTarget, match="longer than"):
        source(address._replace(name=long) if address.kind == "inbox" else address._replace(topic=long))
