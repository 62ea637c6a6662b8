"""The zmq driver's matchmaker file: what is in the file is found, and nothing else."""

from __future__ import annotations

import logging
import pathlib
import socket
from collections.abc import Iterator

import pytest

from msgbus import ConfigurationError, MessageUndeliverable, TransportUnavailable
from msgbus.conformance.checks.receiver import Receiver, message, send
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address
from tests.functional.brokers.processes import free_ports
from tests.functional.zmq_keys import Keys
from tests.functional.zmq_meetings import FileMeeting

TOPIC = Address("topic", "msgbus", "foo")
S1 = Address("server", "msgbus", "foo", "s1")


@pytest.fixture
def meeting(tmp_path: pathlib.Path) -> Iterator[FileMeeting]:
    """A file that names three servers."""
    made = FileMeeting(tmp_path)
    yield made
    made.close()


def test_changes_of_the_file_count_from_the_next_message_on(
    meeting: FileMeeting, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that it names from now on is found by the next message, one that it names no more is not used."""
    meeting.write({"foo": {"s1": meeting.addresses["s1"]}})
    first, second, client = Receiver(), Receiver(), meeting.node()
    first.subscribe(meeting.node("s1"), TOPIC, S1)
    second.subscribe(meeting.node("s2"), TOPIC)
    for n in range(10):
        send(client, TOPIC, str(n))
    first.wait(10)
    meeting.write({"foo": {"s2": meeting.addresses["s2"]}})
    for n in range(10):
        send(client, TOPIC, str(n))
    second.wait(10)
    assert len(first.deliveries) == 10
    error = client.send(S1, message("x"), mandatory=True).exception(15)
    assert isinstance(error, MessageUndeliverable)
    with caplog.at_level(logging.ERROR):
        meeting.path.write_text("{")
        send(client, TOPIC, "as before")
        until(lambda: "its former content stays in use" in caplog.text, "the log says so")
    second.wait_for("as before")


def test_unusable_file_is_our_error(meeting: FileMeeting) -> None:
    """Every use fails with the reason, and works once the file has been put right."""
    meeting.path.write_text('{"foo": {"s1": "nowhere"}}')
    client = meeting.node()
    for _ in range(2):
        error = client.send(TOPIC, message("x"), mandatory=True).exception(15)
        assert isinstance(error, ConfigurationError)
        assert "'nowhere' is not HOST:PORT" in str(error)
    assert "'nowhere' is not HOST:PORT" in client.state
    meeting.write({"foo": {"s1": meeting.addresses["s1"]}})
    receiver = Receiver()
    receiver.subscribe(meeting.node("s1"), TOPIC)
    send(client, TOPIC, "x")


def test_second_process_at_an_address_cannot_listen(meeting: FileMeeting) -> None:
    """Its subscription fails with the reason."""
    Receiver().subscribe(meeting.node("s1"), TOPIC)
    error = meeting.node("s1").subscribe([TOPIC], Receiver().take, prefetch=1).ready.exception(15)
    assert isinstance(error, TransportUnavailable)
    assert f"cannot listen at tcp://{meeting.addresses['s1']}: Address already in use" in str(error)


def test_another_node_at_the_address_gets_nothing(meeting: FileMeeting) -> None:
    """A node of another place, or one that never answers, is not taken for the server; the error says what is there."""
    Receiver().subscribe(
        meeting.open(f"zmq://{meeting.folder}/run?listen=tcp://{meeting.addresses['s1']}").driver, TOPIC
    )
    client = meeting.node(more="&connect_timeout=0.3")
    error = client.send(S1, message("x", ttl=1.0), mandatory=True).exception(15)
    assert isinstance(error, TransportUnavailable)
    assert not error.maybe_delivered
    assert "it looks for node" in str(error)
    host, _, port = meeting.addresses["s2"].partition(":")
    with socket.create_server((host, int(port))):
        error = client.send(S1._replace(server="s2"), message("x", ttl=1.0), mandatory=True).exception(15)
    assert isinstance(error, TransportUnavailable)
    assert meeting.addresses["s2"] in str(error)
    assert "no answer" in str(error)


def test_pool_is_refused(meeting: FileMeeting) -> None:
    """The file says nothing about pools, so their copies would be left out in silence."""
    pool = Address("pool", "msgbus", "foo", name="audit")
    driver = meeting.node("s1")
    error = driver.subscribe([pool], Receiver().take, prefetch=1).ready.exception(15)
    assert isinstance(error, ConfigurationError)
    receiver = Receiver()
    receiver.subscribe(driver, TOPIC)
    send(meeting.node(), TOPIC, "x")


def test_keys_in_the_file_are_names_in_keys_dir(meeting: FileMeeting, tmp_path: pathlib.Path) -> None:
    """The file names the key that a server has to have; another one, or none, gets nothing."""
    keys = Keys(tmp_path / "keys")
    keys.add("server", "other", "client")
    keys.trust("server", "client")
    keys.trust("other", "client")
    keys.trust("client", "server", "other")
    receiver, address = Receiver(), meeting.addresses["s1"]
    receiver.subscribe(meeting.node("s1", more=f"&{keys.query('server')}"), TOPIC)
    client = meeting.node(more=f"&{keys.query('client')}")
    for key, why in (
        ("", "name its key in matchmaker_file"),
        ("nobody", f"its public key is not in {keys.trusted('client')} (no nobody.key)"),
        ("other", "handshake failed"),
    ):
        meeting.write({"foo": {"s1": {"address": address, "key": key}}})

        def is_refused(why: str = why) -> bool:
            # Not at once for that reason: the file may not have been read again yet.
            error = client.send(TOPIC, message("x", ttl=1.0), mandatory=True).exception(15)
            assert isinstance(error, TransportUnavailable)
            return why in str(error)

        until(is_refused, why)
    meeting.write({"foo": {"s1": {"address": address, "key": "server"}}})
    send(client, TOPIC, "x")
    receiver.wait(1)
    assert receiver.bodies == ["x"]


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_addresses_work(meeting: FileMeeting) -> None:
    """An address in brackets."""
    (port,) = free_ports(1)
    meeting.addresses["s1"] = f"[::1]:{port}"
    meeting.write({"foo": {"s1": f"[::1]:{port}"}})
    receiver = Receiver()
    receiver.subscribe(meeting.node("s1"), TOPIC)
    send(meeting.node(), TOPIC, "x")
    receiver.wait(1)
