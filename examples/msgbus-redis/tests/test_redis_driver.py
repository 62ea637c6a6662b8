"""What the suite cannot know of: names, a Redis that is not fit, limits, lost streams, TLS, a fork."""

from __future__ import annotations

import os
import pathlib
import queue
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from oslo_config import cfg
from redis.exceptions import BusyLoadingError

from msgbus import Transport, TransportBlocked, TransportUnavailable, get_rpc_transport
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Capability, Delivery, Message
from msgbus.exceptions import InvalidTransportURL
from msgbus.url import TransportHost
from msgbus_redis.driver import RedisDriver
from msgbus_redis.feed import RedisFeed
from msgbus_redis.names import queue_of, target_of

TOPIC = Address("topic", "x", "foo")
NAMES = ["", "foo", "a:b", "a b", "*", "%", "%3A", "Größe 漢字", "A", "a", "x" * 75, "漢" * 75]
SECONDS = 20.0


@pytest.fixture
def connect() -> Iterator[Callable[..., Transport]]:
    """Makes transports that are closed at the end."""
    made: list[Transport] = []

    def new(url: str) -> Transport:
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[])
        made.append(get_rpc_transport(conf, url))
        return made[-1]

    yield new
    for transport in made:
        transport.cleanup()


def message(body: bytes = b"x", ttl: float | None = SECONDS) -> Message:
    return Message(body, "text/plain", os.urandom(8).hex(), ttl)


def consume(transport: Transport, address: Address, prefetch: int = 10) -> queue.SimpleQueue[Delivery]:
    """Subscribe, and return the queue into which deliveries go."""
    found: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    transport.driver.subscribe([address], found.put, prefetch=prefetch).ready.result(SECONDS)
    return found


def test_addresses_that_differ_have_different_keys() -> None:
    """Whatever characters the names have."""
    addresses = [Address("topic", one, two) for one in NAMES for two in NAMES]
    addresses += [Address("pool", "x", one, name=two) for one in NAMES for two in NAMES]
    addresses += [Address("server", "x", one, two) for one in NAMES for two in NAMES]
    streams = {queue_of(address).stream for address in addresses}
    leases = {queue_of(address).lease for address in addresses}
    assert len(streams | leases) == 2 * len(addresses)


def test_a_message_goes_to_where_its_address_is_consumed_from() -> None:
    """The stream of a topic is that of its stored messages; pools and fanouts are found by their set."""
    assert target_of(TOPIC)[0] == target_of(TOPIC._replace(kind="stored"))[0] == queue_of(TOPIC).stream
    assert target_of(TOPIC)[1] == queue_of(Address("pool", "x", "foo", name="p")).members
    assert target_of(TOPIC._replace(kind="fanout"))[1] == queue_of(Address("fanout", "x", "foo", "s"), "u").members


def test_a_wrong_password_fails_at_once(server: Any, connect: Callable[..., Transport]) -> None:
    """The error says what to check, and has no password."""
    driver = connect(server.url.replace("s3cret", "wr0ng")).driver
    with pytest.raises(TransportUnavailable, match="check user, password") as caught:
        driver.send(TOPIC, message(), mandatory=False).result(SECONDS)
    assert "wr0ng" not in str(caught.value) + driver.state


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("appendonly no",), "set its appendonly to yes"),
        (("maxmemory 100mb", "maxmemory-policy allkeys-lru"), "set its maxmemory-policy to noeviction"),
        (("cluster-enabled yes", "cluster-port OTHER"), "Redis Cluster"),
    ],
)
def test_a_redis_that_loses_messages_is_refused(
    new_server: Callable[..., Any], connect: Callable[..., Transport], lines: tuple[str, ...], words: str
) -> None:
    """At once, and the error says what to set."""
    driver = connect(new_server(*lines).url).driver
    with pytest.raises(TransportUnavailable, match=words):
        driver.send(TOPIC, message(), mandatory=False).result(SECONDS)


def test_a_redis_that_still_reads_its_data_is_waited_for(connect: Callable[..., Transport]) -> None:
    """It says that it has no append-only file as long as it reads that: this is no reason to give it up."""
    driver = connect("redis://localhost/").driver
    assert isinstance(driver, RedisDriver)
    with pytest.raises(BusyLoadingError) as caught:
        driver._check_server({"loading": "1", "aof_enabled": "0", "redis_version": "7.0.15"})
    assert not driver.explain(caught.value, TransportHost("localhost"))[1]


def test_durable_false_does_without_a_file(new_server: Callable[..., Any], connect: Callable[..., Transport]) -> None:
    """And does not declare it."""
    driver = connect(new_server("appendonly no").url + "?durable=false").driver
    assert Capability.DURABLE not in driver.capabilities
    driver.send(TOPIC, message(), mandatory=False).result(SECONDS)


def test_the_rights_that_the_readme_names_suffice(
    new_server: Callable[..., Any], connect: Callable[..., Transport]
) -> None:
    """For all that a server and a client do."""
    readme = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
    rights = next(line for line in readme.splitlines() if line.startswith("~msgbus:*"))
    url = new_server(f"user bus on >pw {rights}").url.replace(":s3cret", "bus:pw")
    driver = connect(url).driver
    got: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    inbox = driver.open_inbox(got.put)
    inbox.ready.result(SECONDS)
    addresses = [TOPIC, Address("server", "x", "foo", "s"), Address("fanout", "x", "foo", "s")]
    subscription = driver.subscribe(addresses, got.put, prefetch=2)
    subscription.ready.result(SECONDS)
    for address in (*addresses, inbox.address):
        driver.send(address, message(), mandatory=False).result(SECONDS)
        delivery = got.get(timeout=SECONDS)
        if address == TOPIC:
            delivery.reject(requeue=True)
            delivery = got.get(timeout=SECONDS)
        if address != inbox.address:
            delivery.accept()
    assert driver.inspect(TOPIC).result(SECONDS).consumers == 1
    subscription.close().result(SECONDS)
    inbox.close().result(SECONDS)


def test_a_database_has_a_number(connect: Callable[..., Transport]) -> None:
    """A name in its place is an error in the URL."""
    with pytest.raises(InvalidTransportURL, match="database"):
        connect("redis://localhost/orders")


def test_a_full_queue_takes_no_more_until_there_is_room(server: Any, connect: Callable[..., Transport]) -> None:
    """What is sent fails as blocked at its deadline, or goes when a message was accepted. Nothing is trimmed."""
    address = Address("server", "x", "full", "one")
    driver = connect(f"{server.url}?max_queue_length=3").driver
    found: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    driver.subscribe([address], found.put, prefetch=1).ready.result(SECONDS)
    for number in range(3):
        driver.send(address, message(b"%d" % number), mandatory=True).result(SECONDS)
    with pytest.raises(TransportBlocked, match="max_queue_length"):
        driver.send(address, message(b"late", 0.5), mandatory=True).result(SECONDS)
    waits = driver.send(address, message(b"3"), mandatory=True)
    bodies = []
    for _ in range(4):
        delivery = found.get(timeout=SECONDS)
        bodies.append(delivery.message.body)
        delivery.accept()
    waits.result(SECONDS)
    assert bodies == [b"0", b"1", b"2", b"3"]


def test_what_has_expired_makes_room(server: Any, connect: Callable[..., Transport]) -> None:
    """A full queue nobody listens to takes messages again when those in it are worthless."""
    address = Address("stored", "x", "expired")
    driver = connect(f"{server.url}?max_queue_length=2").driver
    for _ in range(2):
        driver.send(address, message(ttl=0.5), mandatory=True).result(SECONDS)
    driver.send(address, message(), mandatory=True).result(SECONDS)
    assert driver.inspect(Address("topic", "x", "expired")).result(SECONDS).messages == 1


def test_a_redis_without_memory_blocks(new_server: Callable[..., Any], connect: Callable[..., Transport]) -> None:
    """Nothing is dropped: the sender hears of it, and what can be consumed is."""
    server = new_server("maxmemory 1gb")
    driver = connect(server.url).driver
    found = consume(connect(server.url), TOPIC)
    driver.send(TOPIC, message(b"before"), mandatory=True).result(SECONDS)
    with server.client as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(TransportBlocked, match="maxmemory"):
            driver.send(TOPIC, message(b"no", 0.5), mandatory=True).result(SECONDS)
        delivery = found.get(timeout=SECONDS)
        assert delivery.message.body == b"before"
        delivery.reject(requeue=True)  # is possible without memory
        again = found.get(timeout=SECONDS)
        assert (again.message.body, again.attempts) == (b"before", 1)
        consume(connect(server.url), Address("topic", "x", "new"))  # nor does it keep anybody from beginning
        client.config_set("maxmemory", "1gb")
    driver.send(TOPIC, message(b"after"), mandatory=True).result(SECONDS)
    assert found.get(timeout=SECONDS).message.body == b"after"


@pytest.mark.parametrize("command", ["FLUSHALL", "DEL", "XGROUP DESTROY"])
def test_consumers_come_back_when_their_stream_was_removed(
    server: Any, connect: Callable[..., Transport], command: str
) -> None:
    """The queue of a topic, and an inbox, are made anew within seconds."""
    driver = connect(server.url).driver
    got: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    inbox = driver.open_inbox(got.put)
    inbox.ready.result(SECONDS)
    found = consume(connect(server.url), TOPIC)
    with server.client as client:
        for address in (TOPIC, inbox.address):
            stream = queue_of(address).stream
            words = {"FLUSHALL": (), "DEL": (stream,), "XGROUP DESTROY": (stream, "msgbus")}[command]
            client.execute_command(command, *words)

    def arrives(address: Address, where: queue.SimpleQueue[Delivery]) -> bool:
        driver.send(address, message(), mandatory=False).result(SECONDS)
        try:
            where.get(timeout=0.5).accept()
        except queue.Empty:
            return False
        return True

    until(lambda: arrives(TOPIC, found), "the topic is consumed from", SECONDS)
    until(lambda: arrives(inbox.address, got), "the inbox is read", SECONDS)


def test_removed_scripts_come_back(server: Any, connect: Callable[..., Transport]) -> None:
    """SCRIPT FLUSH costs a reconnect and no message."""
    found = consume(connect(server.url), TOPIC)
    driver = connect(server.url).driver
    with server.client as client:
        client.script_flush()
    driver.send(TOPIC, message(b"kept"), mandatory=True).result(SECONDS)
    delivery = found.get(timeout=SECONDS)
    assert delivery.message.body == b"kept"
    delivery.accept()


def test_foreign_entries_are_dropped(server: Any, connect: Callable[..., Transport]) -> None:
    """What others put into a stream stops nothing."""
    found = consume(connect(server.url), TOPIC)
    with server.client as client:
        client.xadd(queue_of(TOPIC).stream, {"what": "ever"})
    connect(server.url).driver.send(TOPIC, message(b"mine"), mandatory=True).result(SECONDS)
    delivery = found.get(timeout=SECONDS)
    assert delivery.message.body == b"mine"
    delivery.accept()


def test_a_frozen_consumers_messages_go_to_another(
    server: Any, connect: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its lease has ended: with the count of deliveries, and what it accepts afterwards changes nothing."""
    monkeypatch.setattr("msgbus_redis.feed.LEASE", 2.0)
    monkeypatch.setattr("msgbus_redis.session.BEAT", 0.5)
    address = Address("topic", "x", "frozen")
    frozen = connect(server.url)
    first = consume(frozen, address, prefetch=1)  # so that it does not get it again
    connect(server.url).driver.send(address, message(b"1"), mandatory=True).result(SECONDS)
    held = first.get(timeout=SECONDS)
    beat = RedisFeed.beat
    monkeypatch.setattr(RedisFeed, "beat", lambda feed: None if feed._session._driver is frozen.driver else beat(feed))
    second = consume(connect(server.url), address)
    again = second.get(timeout=SECONDS)
    assert (again.message.body, again.redelivered, again.attempts) == (b"1", True, 1)
    held.accept()
    again.accept()
    until(lambda: server.client.xlen(queue_of(address).stream) == 0, "it is done with", SECONDS)


def test_the_host_that_is_the_master_is_used(new_server: Callable[..., Any], connect: Callable[..., Transport]) -> None:
    """A replica takes no messages, so the next host is tried."""
    master = new_server()
    replica = new_server(f"replicaof 127.0.0.1 {master.port}", "masterauth s3cret")
    until(lambda: replica.client.info()["role"] == "slave", "it is a replica", SECONDS)
    driver = connect(f"redis://:s3cret@127.0.0.1:{replica.port},127.0.0.1:{master.port}/").driver
    driver.send(TOPIC, message(), mandatory=False).result(SECONDS)
    assert str(master.port) in driver.state


def test_rediss_is_tls(
    new_server: Callable[..., Any], connect: Callable[..., Transport], tmp_path: pathlib.Path
) -> None:
    """With the certificate that is trusted it connects; without, the error says what to check."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout {key} -out {cert}"
    )
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*words.split(), *names], check=True, stderr=subprocess.DEVNULL)
    lines = ("port 0", "tls-port PORT", f"tls-cert-file {cert}", f"tls-key-file {key}", "tls-auth-clients no")
    url = new_server(*lines).url.replace("redis:", "rediss:")
    trusting = connect(f"{url}?ssl_ca_file={cert}")
    found = consume(trusting, TOPIC)
    trusting.driver.send(TOPIC, message(b"secret"), mandatory=True).result(SECONDS)
    assert found.get(timeout=SECONDS).message.body == b"secret"
    with pytest.raises(TransportUnavailable, match="check ssl_ca_file"):
        connect(url).driver.send(TOPIC, message(ttl=2), mandatory=True).result(SECONDS)


def test_a_forked_child_does_not_keep_connections_open(server: Any, connect: Callable[..., Transport]) -> None:
    """Once the parent has died or closed, Redis sees that."""
    transport = connect(server.url)
    consume(transport, TOPIC)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        transport.cleanup()
        until(
            lambda: not [found for found in server.client.client_list() if found["name"] == "msgbus"],
            "no connection is left",
            SECONDS,
        )
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
