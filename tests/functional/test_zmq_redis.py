"""The zmq driver's matchmaker redis: a Redis that is away, dies, loses data, or has invalid data; leases; and keys."""

from __future__ import annotations

import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis as redis_library

from msgbus import MessageUndeliverable, Target, TransportUnavailable, get_rpc_server
from msgbus.conformance.checks.receiver import Receiver, message, send
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Address, Driver
from msgbus.drivers.zmq.matchmakers.base import Entry, Service
from tests.functional.brokers.redis import Redis
from tests.functional.zmq_keys import Keys
from tests.functional.zmq_meetings import RedisMeeting

TOPIC = Address("topic", "msgbus", "foo")
ALL = Address("fanout", "msgbus", "foo")
OTHER = Address("topic", "msgbus", "other")
PASSWORD = "s3cret"


@pytest.fixture
def own_redis(redis: Redis, tmp_path: pathlib.Path) -> Iterator[Redis]:
    """One of this test's own, which does not run yet; if Redis is not installed, the shared one says so."""
    assert redis.alive()
    server = Redis(tmp_path / "redis", password=PASSWORD)
    yield server
    server.close()


@pytest.fixture
def meeting(own_redis: Redis, tmp_path: pathlib.Path) -> Iterator[RedisMeeting]:
    """Nodes that use it, and no thread that is left of them."""
    before = set(threading.enumerate())
    made = RedisMeeting(tmp_path, own_redis)
    yield made
    made.close()
    until(lambda: set(threading.enumerate()) <= before, "the end of all threads")


def client_of(server: Redis) -> Any:
    """The plain Redis client."""
    return redis_library.Redis(host=server.host, port=server.port, password=PASSWORD)


def write_entry(server: Redis, node: str, value: bytes, seconds: int = 60) -> None:
    """Write an entry into Redis, and publish that, as a node would."""
    with client_of(server) as client:
        client.set(f"msgbus:node:{node}", value, ex=seconds)
        client.sadd("msgbus:nodes", node)
        client.publish("msgbus:0", node)


def entry_of(node: str, endpoint: str, key: str = "") -> bytes:
    """What a node that serves `TOPIC` says."""
    return msgspec.msgpack.encode(Entry(node, 1, "elsewhere", [endpoint], [Service((*TOPIC,), 1, 10)], key))


def endpoint_of(bound: socket.socket) -> str:
    """Where it is."""
    return f"tcp://127.0.0.1:{bound.getsockname()[1]}"


def error_of(driver: Driver, address: Address = TOPIC, ttl: float = 1.0) -> BaseException | None:
    """What a message fails with."""
    return driver.send(address, message("x", ttl=ttl), mandatory=True).exception(30)


# A Redis that is away


def test_messages_and_servers_wait_for_a_redis_that_is_away(
    meeting: RedisMeeting, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages wait for it within their deadline, a server is not ready; both go on by themselves when it is there."""
    receiver, client, served = Receiver(), meeting.node(), meeting.node("s1")
    with caplog.at_level(logging.WARNING):
        subscription = served.subscribe([TOPIC], receiver.take, prefetch=10)
        error = error_of(client)
        waiting = client.send(TOPIC, message("waiting"), mandatory=True)
        fanout = client.send(TOPIC._replace(kind="fanout"), message("all", ttl=0.5), mandatory=False).exception(15)
        with pytest.raises(TimeoutError):
            subscription.ready.result(0.2)
    assert isinstance(error, TransportUnavailable)
    assert not error.maybe_delivered
    assert isinstance(fanout, TransportUnavailable)
    assert f"Redis at 127.0.0.1:{meeting.redis.port}/0" in str(error)
    assert "Connection refused" in str(error)
    assert "Connection refused" in client.state
    lines = [record.getMessage() for record in caplog.records if "cannot be used" in record.getMessage()]
    assert len(lines) == 2, "one for each node"
    meeting.redis.start()
    subscription.ready.result(15)
    waiting.result(15)
    receiver.wait_for("waiting")
    until(lambda: "Connection refused" not in client.state, "both of its connections to Redis are back")
    assert isinstance(error_of(client, OTHER), TransportUnavailable), "others have time to find it again"
    assert isinstance(error_of(client, OTHER, ttl=15), MessageUndeliverable)


def test_a_server_that_starts_without_redis_says_why(meeting: RedisMeeting) -> None:
    """When its time is over, with the reason that the driver gives."""
    target = Target(topic="foo", server="s1")
    server = get_rpc_server(meeting.transport("s1"), target, [])
    with pytest.raises(TransportUnavailable, match=r"cannot listen on .*Connection refused"):
        server.start(1)


def test_known_nodes_go_on_while_redis_is_away_and_new_ones_are_found_later(
    meeting: RedisMeeting, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says that Redis is away, and when it is back."""
    meeting.redis.start()
    receiver, client, served = Receiver(), meeting.node(), meeting.node("s1")
    receiver.subscribe(served, TOPIC)
    send(client, TOPIC, "before")
    with caplog.at_level(logging.WARNING):
        meeting.redis.kill()
        until(lambda: "Redis" in client.state.partition(";")[2], "its loss is noticed")
        send(client, TOPIC, "meanwhile")
        assert isinstance(error_of(client, OTHER), TransportUnavailable), "nobody can know"
        late, newcomer = Receiver(), meeting.node("s2")
        subscription = newcomer.subscribe([OTHER], late.take, prefetch=10)
        waiting = client.send(OTHER, message("waits"), mandatory=True)
        meeting.redis.start()
        subscription.ready.result(15)
        waiting.result(15)
        send(client, TOPIC, "after")
        send(client, OTHER, "to the new one")
    late.wait_for("to the new one")
    receiver.wait(3)
    assert receiver.bodies == ["before", "meanwhile", "after"]
    assert "cannot be used" in caplog.text
    assert "known nodes keep working" in caplog.text
    # One that was too busy to notice has nothing to say.
    until(lambda: caplog.text.count("is back") == caplog.text.count("cannot be used"), "each that missed it says so")
    with client_of(meeting.redis) as plain:
        until(lambda: plain.scard("msgbus:nodes") == 2, "both servers are in it again")


def test_known_nodes_go_on_while_redis_is_frozen(meeting: RedisMeeting) -> None:
    """One that takes connections and answers nothing is as good as away: what is known holds, and close is quick."""
    meeting.redis.start()
    receiver, client, served = Receiver(), meeting.node(), meeting.node("s1")
    receiver.subscribe(served, TOPIC)
    send(client, TOPIC, "before")
    meeting.redis.pause()
    try:
        until(lambda: "cannot be used" in client.state, "its loss is noticed", 30)
        send(client, TOPIC, "meanwhile")
        begun = time.monotonic()
        client.close()
        assert time.monotonic() - begun < 10
    finally:
        meeting.redis.resume()
    send(meeting.node(), TOPIC, "after")
    receiver.wait(3)


def test_wrong_password_is_reported_and_not_shown(meeting: RedisMeeting, caplog: pytest.LogCaptureFixture) -> None:
    """The error says what Redis says, and neither it nor the log shows a password."""
    meeting.redis.start()
    wrong = meeting.client_url().replace(PASSWORD, "wr0ng")
    with caplog.at_level(logging.DEBUG):
        driver = meeting.open(wrong).driver
        error = error_of(driver)
    assert isinstance(error, TransportUnavailable)
    assert "invalid username-password pair" in str(error)
    for text in (str(error), caplog.text, driver.state):
        assert "wr0ng" not in text


# Leases


def test_node_is_removed_when_its_lease_runs_out(meeting: RedisMeeting) -> None:
    """So a node that has died is noticed at the latest then."""
    meeting.redis.start()
    client = meeting.node()
    assert isinstance(error_of(client, ttl=15), MessageUndeliverable)
    node = "0123456789abcdef"
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(10)
        write_entry(meeting.redis, node, entry_of(node, endpoint_of(mute)), seconds=2)
        call = Task(lambda: error_of(client, ttl=30))
        assert isinstance(call.result(), MessageUndeliverable)
        assert 0.5 < call.seconds < 15
    with client_of(meeting.redis) as plain:
        until(lambda: not plain.sismember("msgbus:nodes", node), "somebody has taken it out")


def test_lease_is_renewed_also_after_it_was_removed(meeting: RedisMeeting) -> None:
    """A node that lives is there as long as it does, also when somebody has removed it from Redis."""
    meeting.redis.start()
    receiver, served = Receiver(), meeting.node("s1")
    receiver.subscribe(served, TOPIC)
    with client_of(meeting.redis) as plain:
        (key,) = [key for key in plain.scan_iter() if key != b"msgbus:nodes"]
        for _ in range(2):
            until(lambda: plain.ttl(key) <= 8, "some time has passed")
            until(lambda: plain.ttl(key) > 8, "it is renewed")
        plain.flushall()
        until(lambda: plain.exists(key) and plain.scard("msgbus:nodes"), "it is there again")
    send(meeting.node(), TOPIC, "x")
    served.close()
    with client_of(meeting.redis) as plain:
        assert not plain.exists(key), "a node that closes is removed at once"


def test_node_that_refuses_connections_is_left_out(meeting: RedisMeeting) -> None:
    """Long before its lease ends, another gets the message, or nobody is there."""
    meeting.redis.start()
    client = meeting.node()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = endpoint_of(closed)
        write_entry(meeting.redis, "0123456789abcdef", entry_of("0123456789abcdef", endpoint))
        call = Task(lambda: error_of(client, ttl=30))
        assert isinstance(call.result(), MessageUndeliverable)
        assert call.seconds < 5
        receiver = Receiver()
        receiver.subscribe(meeting.node("s1"), TOPIC)
        for n in range(10):
            send(client, TOPIC, str(n))
    receiver.wait(10)


def test_node_in_whose_place_another_is_is_left_out(meeting: RedisMeeting) -> None:
    """As after a crash: a process was started again at the same address, and its former entry is still there."""
    meeting.redis.start()
    client, server = meeting.node(), meeting.node("s1")
    receiver = Receiver()
    receiver.subscribe(server, TOPIC, ALL._replace(server="s1"))
    send(client, TOPIC, "before")
    node: Any = server
    former = "0123456789abcdef"
    services = [Service((*address,), 1, 10) for address in (TOPIC, ALL)]
    entry = Entry(former, 1, "elsewhere", [node._node._endpoints[1]], services)
    write_entry(meeting.redis, former, msgspec.msgpack.encode(entry))
    until(lambda: "3 nodes known" in client.state, "the client has read the former entry")
    send(client, ALL, "to all", mandatory=False)
    receiver.wait_for("to all")


# Invalid data


def test_invalid_data_in_redis_is_left_out_and_logged(meeting: RedisMeeting, caplog: pytest.LogCaptureFixture) -> None:
    """Nodes with valid entries do not notice."""
    meeting.redis.start()
    receiver, client, served = Receiver(), meeting.node(), meeting.node("s1")
    receiver.subscribe(served, TOPIC)
    send(client, TOPIC, "before")
    a, b, c, d = ("a" * 16, "b" * 16, "c" * 16, "d" * 16)
    with caplog.at_level(logging.WARNING):
        write_entry(meeting.redis, a, b"\xff\x00 rubbish")
        write_entry(meeting.redis, b, entry_of(a, "tcp://127.0.0.1:1"))
        write_entry(meeting.redis, c, entry_of(c, f"ipc://{meeting.folder}/x.sock"))
        write_entry(meeting.redis, d, entry_of(d, "tcp://no host:x"))
        write_entry(meeting.redis, "../../etc/passwd", b"")
        until(lambda: caplog.text.count("is left out") >= 3, "they are left out")
        for n in range(10):
            send(client, TOPIC, str(n))
    receiver.wait(11)
    with client_of(meeting.redis) as plain:
        plain.delete("msgbus:nodes")
        plain.set("msgbus:nodes", "no set at all")
        send(client, TOPIC, "after")
        until(lambda: "WRONGTYPE" in client.state, "the state says so")
        plain.delete("msgbus:nodes")
        until(lambda: "WRONGTYPE" not in client.state, "it goes on")
    receiver.wait_for("after")


def test_server_without_the_option_listen_is_found_on_its_host_alone(
    meeting: RedisMeeting, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the option listen others cannot find it, and the log says so; those of its host do."""
    meeting.redis.start()
    url = meeting.client_url()
    receiver = Receiver()
    with caplog.at_level(logging.WARNING):
        receiver.subscribe(meeting.open(url).driver, TOPIC)
    assert "serves this host alone: set listen" in caplog.text
    assert isinstance(error_of(meeting.node(), ttl=15), MessageUndeliverable)
    send(meeting.open(url).driver, TOPIC, "of this host")
    receiver.wait(1)


def test_nodes_of_one_host_find_each_other_while_redis_is_away(meeting: RedisMeeting) -> None:
    """They meet in the run directory too: a death is known there at once, and a new node while Redis is away."""
    meeting.redis.start()
    url = meeting.client_url() + "&listen=tcp://127.0.0.1:*"
    client = meeting.open(url).driver
    assert isinstance(error_of(client, ttl=15), MessageUndeliverable)
    meeting.redis.kill()
    until(lambda: "cannot be used" in client.state, "its loss is noticed")
    receiver, newcomer = Receiver(), meeting.open(url).driver
    subscription = newcomer.subscribe([TOPIC], receiver.take, prefetch=10)
    send(client, TOPIC, "found in the directory")
    receiver.wait(1)
    assert not subscription.ready.done(), "for others it is not ready"
    assert len(os.listdir(meeting.folder)) >= 2


# Keys


def test_key_in_redis_is_not_trusted(meeting: RedisMeeting, tmp_path: pathlib.Path) -> None:
    """What a server says there of its own key counts only if the key is in keys_dir; the error names the directory."""
    keys = Keys(tmp_path / "keys")
    keys.add("server", "client", "stranger")
    keys.trust("server", "client")
    keys.trust("stranger", "client")
    meeting.redis.start()
    client = meeting.node(more=f"&{keys.query('client')}")
    stranger = Receiver()
    stranger.subscribe(meeting.node("s1", more=f"&{keys.query('stranger')}"), TOPIC)
    error = error_of(client, ttl=5)
    assert isinstance(error, TransportUnavailable)
    assert f"its public key is not in {keys.trusted('client')}" in str(error)
    keys.trust("client", "server")
    trusted = Receiver()
    trusted.subscribe(meeting.node("s2", more=f"&{keys.query('server')}"), TOPIC)
    for n in range(10):
        send(client, TOPIC, str(n))
    trusted.wait(10)
    assert stranger.deliveries == []
