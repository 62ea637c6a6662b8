"""The zmq driver with keys: which connections are accepted over TCP, and what happens to others."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import zmq

from msgbus import ConfigurationError, TransportUnavailable
from msgbus.conformance.checks.receiver import Receiver, message, send
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Driver
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.matchmakers.base import Entry, Service
from tests.functional.test_zmq import TOPIC, Place, pretend
from tests.functional.zmq_faults import cut_tcp, hide_sockets
from tests.functional.zmq_keys import Keys

LISTEN = "listen=tcp://127.0.0.1:*"


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[Place]:
    """A place of this test's own."""
    found = Place(tmp_path)
    yield found
    found.close()


@pytest.fixture
def keys(tmp_path: pathlib.Path) -> Keys:
    """The hosts `server` and `client`, which trust each other."""
    found = Keys(tmp_path / "keys")
    found.add("server", "client", "stranger")
    found.trust("server", "client")
    found.trust("client", "server")
    found.trust("stranger", "server")
    return found


def node_of(driver: Driver) -> Any:
    """The node of a driver."""
    found: Any = driver
    return found._node


def tcp_of(driver: Driver) -> tuple[str, int]:
    """Where a driver listens."""
    parts = urlsplit(node_of(driver)._endpoints[1])
    return str(parts.hostname), int(parts.port or 0)


def serve(place: Place, keys: Keys, query: str = "") -> tuple[Receiver, Driver]:
    """A server that can be reached over TCP alone."""
    receiver, driver = Receiver(), place.driver("&".join(filter(None, (LISTEN, keys.query("server"), query))))
    receiver.subscribe(driver, TOPIC)
    hide_sockets(place.run_dir)
    return receiver, driver


def refused(client: Driver) -> str:
    """Try to send, and return why that was not possible."""
    error = client.send(TOPIC, message("x", ttl=1.0), mandatory=True).exception(15)
    assert isinstance(error, TransportUnavailable)
    assert not error.maybe_delivered
    return str(error)


def greeting(connection: socket.socket) -> bytes:
    """How a ZeroMQ socket begins, for one that greets it, and does not say its own mechanism."""
    connection.settimeout(15)
    connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03")
    found = b""
    while len(found) < 64 and (part := connection.recv(64)):
        found += part
    return found


def test_nodes_with_keys_use_curve_on_the_loopback_too(place: Place, keys: Keys) -> None:
    """All goes through between two that trust each other; the Unix socket stays as it is."""
    receiver, server = serve(place, keys)
    client = place.driver(keys.query("client"))
    for n in range(100):
        send(client, TOPIC, str(n))
    receiver.wait(100)
    assert receiver.bodies == [str(n) for n in range(100)]
    with socket.create_connection(tcp_of(server), timeout=15) as connection:
        assert b"CURVE\0" in greeting(connection)
    plain = place.driver(keys.query("server"))
    send(plain, TOPIC, "of the same host")  # It has the same key, which need not be in its own keys_dir.
    with socket.socket(socket.AF_UNIX) as local:
        local.connect(place.socket_of(plain))
        assert b"NULL\0" in greeting(local)


def test_client_without_a_key_is_rejected_and_logged_once(
    place: Place, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own error says so, and the server's log names its address, once."""
    receiver, _server = serve(place, keys)
    client = place.driver()
    with caplog.at_level(logging.WARNING):
        why = refused(client)
        # libzmq hangs up so soon that it takes some attempts until an address is found.
        until(lambda: refused(client) and "a connection from 127.0.0.1: handshake failed" in caplog.text, "a line", 60)
        refused(client)
    assert "handshake failed" in why
    assert "key_file on both" in why
    assert caplog.text.count("a connection from 127.0.0.1") == 1
    assert receiver.deliveries == []


def test_client_with_an_unknown_key_is_rejected_until_it_is_trusted(
    place: Place, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """Likewise, until its key is trusted, which needs no restart."""
    receiver, _server = serve(place, keys)
    client = place.driver(keys.query("stranger"))
    with caplog.at_level(logging.WARNING):
        why = refused(client)
    assert "handshake failed: the side that dials is not trusted; check that keys_dir" in why
    (line,) = [record.getMessage() for record in caplog.records if "rejected a connection" in record.getMessage()]
    assert "127.0.0.1" in line
    assert "its key is not in keys_dir" in line
    keys.trust("server", "stranger")
    send(client, TOPIC, "now")
    receiver.wait_for("now")


def test_server_with_an_unknown_key_gets_nothing(place: Place, keys: Keys) -> None:
    """Not even a handshake; the error names the directory."""
    receiver, _server = serve(place, keys)
    keys.distrust("client", "server")
    why = refused(place.driver(keys.query("client")))
    assert "handshake failed before it began: its public key is not in" in why
    assert str(keys.trusted("client")) in why
    assert receiver.deliveries == []


def test_server_without_a_key_gets_nothing(place: Place, keys: Keys) -> None:
    """A node with keys never connects without, not even on the loopback."""
    receiver, server = Receiver(), place.driver(LISTEN)
    receiver.subscribe(server, TOPIC)
    hide_sockets(place.run_dir)
    assert "that node has no key" in refused(place.driver(keys.query("client")))
    assert receiver.deliveries == []


def test_server_with_another_key_than_in_its_entry_gets_nothing(
    place: Place, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that listens at the endpoint of a trusted one does not get the message."""
    receiver, server = serve(place, keys)
    keys.trust("client", "stranger")
    client = place.driver(keys.query("client"))
    send(client, TOPIC, "before")
    node, endpoint = "0123456789abcdef", node_of(server)._endpoints[1]
    lock = pretend(place, node, endpoint)
    try:
        entry = Entry(node, 1, "here", [endpoint], [Service((*TOPIC,), 1, 10)], keys.public("stranger"))
        (place.run_dir / f"{node}.2.node").write_bytes(msgspec.msgpack.encode(entry))
        (place.run_dir / "changes").write_bytes(os.urandom(8))
        server.close()
        receiver.deliveries.clear()
        with caplog.at_level(logging.WARNING):
            impostor, _ = serve_at(place, keys, endpoint)
            why = refused(client)
    finally:
        os.close(lock)
    assert "handshake failed" in why
    assert "has another key than expected" in caplog.text
    assert impostor.deliveries == []


def serve_at(place: Place, keys: Keys, endpoint: str) -> tuple[Receiver, Driver]:
    """Listen at an endpoint that another has left, and serve something else."""
    receiver, driver = Receiver(), place.driver(f"listen={endpoint}&{keys.query('server')}")
    receiver.subscribe(driver, TOPIC._replace(topic="other"))
    return receiver, driver


def test_removed_key_is_rejected_at_the_next_connection(place: Place, keys: Keys) -> None:
    """Existing connections stay; new ones are rejected."""
    receiver, _server = serve(place, keys)
    client = place.driver(keys.query("client"))
    send(client, TOPIC, "before")
    keys.distrust("server", "client")
    assert "is not trusted" in refused(place.driver(keys.query("client")))
    send(client, TOPIC, "still connected")
    receiver.wait(2)
    cut_tcp()
    lost = client.send(TOPIC, message("x", ttl=1.0), mandatory=True).exception(15)
    assert isinstance(lost, TransportUnavailable)
    assert "is not trusted" in refused(client)
    assert receiver.bodies == ["before", "still connected"]


def test_raw_peers_get_no_answer(place: Place, keys: Keys) -> None:
    """One that says HELLO without a handshake, or with a key of its own making, hears nothing and is not heard."""
    receiver, server = serve(place, keys)
    node = node_of(server).id
    context = zmq.Context()
    try:
        for with_key in (False, True):
            peer = context.socket(zmq.DEALER)
            peer.setsockopt(zmq.LINGER, 0)
            peer.setsockopt(zmq.RECONNECT_IVL, -1)
            if with_key:
                peer.curve_publickey, peer.curve_secretkey = zmq.curve_keypair()
                peer.curve_serverkey = keys.public("server").encode()
            monitor = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            peer.connect("tcp://{}:{}".format(*tcp_of(server)))
            peer.send(frames.hello(frames.Hello(frames.PROTOCOL, "f" * 16, node, 1 << 24, 1)))
            assert monitor.poll(15_000), "it is hung up on"
            assert not peer.poll(0)
            peer.disable_monitor()
            monitor.close(0)
            peer.close()
    finally:
        context.destroy(linger=0)  # Where the test fails, a socket is still open, and `term` would wait for it.
    assert receiver.deliveries == []


def test_garbage_and_silence_on_the_port_disturb_nobody_else(
    place: Place, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """Others do not notice; a connection on which nothing comes is closed after connect_timeout."""
    receiver, server = serve(place, keys, "connect_timeout=0.3")
    client = place.driver(keys.query("client"))
    with contextlib.ExitStack() as opened, caplog.at_level(logging.WARNING):
        for data in (b"GET / HTTP/1.1\r\n\r\n" * 10, b"\xff" * 5000, b"\x00" * 5000):
            raw = opened.enter_context(socket.create_connection(tcp_of(server), timeout=15))
            with contextlib.suppress(ConnectionError):
                raw.sendall(data)
        half = opened.enter_context(socket.create_connection(tcp_of(server), timeout=15))
        curve = opened.enter_context(socket.create_connection(tcp_of(server), timeout=15))
        greeting(curve)
        send(client, TOPIC, "meanwhile")
        for silent in (half, curve):
            with contextlib.suppress(ConnectionError):
                while silent.recv(1000):
                    pass
    send(client, TOPIC, "after")
    receiver.wait(2)
    assert receiver.bodies == ["meanwhile", "after"]
    assert 1 <= caplog.text.count("rejected a connection") <= 2, (
        "one of 127.0.0.1, and one of an address that was unknown"
    )


def test_key_file_that_others_can_read_is_refused(place: Place, keys: Keys) -> None:
    """Nothing is sent with it, and the text says what to do."""
    keys.file("client").chmod(0o640)
    driver = place.driver(keys.query("client"))
    error = driver.send(TOPIC, message("x"), mandatory=True).exception(15)
    assert isinstance(error, ConfigurationError)
    assert "mode 640" in str(error)
    assert "chmod 600" in str(error)
    keys.file("client").chmod(0o600)
    Receiver().subscribe(driver, TOPIC)
    send(driver, TOPIC, "x")


def test_listening_without_keys_needs_the_insecure_option_and_is_logged(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """All addresses of the host may be listened at without keys, if the option with the frightening name says so."""
    insecure = "insecure_let_anybody_send_and_read=true"
    receiver, server = Receiver(), place.driver(f"listen=tcp://*:*&{insecure}")
    with caplog.at_level(logging.WARNING):
        receiver.subscribe(server, TOPIC)
    assert "insecure_let_anybody_send_and_read is set: anybody who reaches tcp://*:* can send and read" in caplog.text
    hide_sockets(place.run_dir)
    send(place.driver(insecure), TOPIC, "x")
    receiver.wait_for("x")
