"""msgbus.drivers.zmq: what a transport URL may say, and what is refused before anything is sent."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from msgbus import (
    CapabilityMissing,
    ConfigurationError,
    InvalidTarget,
    InvalidTransportURL,
    MessageTooLarge,
    TransportUnavailable,
)
from msgbus.drivers.base import Address, Capability, Message
from msgbus.transport import get_rpc_transport
from tests.support import EVENT_TIMEOUT, new_conf


def driver_of(url: str) -> Any:
    """The driver of a transport that is closed at once: nothing of it is used."""
    transport = get_rpc_transport(new_conf(), url)
    transport.cleanup()
    return transport.driver


def test_run_directory_is_the_path_of_the_url_the_option_or_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL's path, or the option, or the user's own directory."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/5")
    assert driver_of("zmq://")._run_dir == "/run/user/5/msgbus"
    assert driver_of("zmq:///")._run_dir == "/run/user/5/msgbus"
    assert driver_of("zmq:///var/run/x")._run_dir == "/var/run/x"
    assert driver_of("zmq:////var/run/x")._run_dir == "/var/run/x"
    assert driver_of("zmq://?run_dir=/var/run/y")._run_dir == "/var/run/y"


def test_url_with_hosts_or_two_run_directories_is_refused() -> None:
    """Hosts, which have options of their own, and two directories."""
    with pytest.raises(InvalidTransportURL, match="no hosts"):
        driver_of("zmq://somewhere/")
    with pytest.raises(InvalidTransportURL, match="twice"):
        driver_of("zmq:///a?run_dir=/b")


@pytest.mark.parametrize("port", ["95x1", "99999", "65536", "-1", "", "9501+", "/", "%D9%A1"])
def test_what_is_not_a_port_is_refused(port: str) -> None:
    """It is not taken for another port, at which nobody looks for this process."""
    with pytest.raises(ConfigurationError, match=r"listen of .* is not a port"):
        driver_of(f"zmq://?listen=tcp://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "advertise",
    ["tcp://10.0.0.5:9501", "10.0.0.5:99999", "10.0.0.5:0", "10.0.0.5:x", "fd00::5", "[fd00::5", "a/b", ":1"],
)
def test_what_nobody_can_connect_to_is_not_advertised(advertise: str) -> None:
    """It is refused at once: the server would be ready, and each client would fail."""
    with pytest.raises(ConfigurationError, match=r"advertise of .*: write HOST or HOST:PORT"):
        driver_of(f"zmq://?advertise={advertise}")


@pytest.mark.parametrize("advertise", ["host-a", "10.0.0.5", "host-a.example:9501", "[fd00::5]", "[fd00::5%25eth0]:1"])
def test_hosts_and_ports_are_advertised(advertise: str) -> None:
    """A name, an address of either kind, and a port after it."""
    driver_of(f"zmq://?advertise={advertise}")


@pytest.mark.parametrize("query", ["run_dir=/tmp/x%00", "matchmaker=file&matchmaker_file=/tmp/x%00"])
def test_path_with_a_zero_byte_is_reported(query: str) -> None:
    """What is sent or subscribed to fails at once, and does not wait for a node that cannot be opened."""
    transport = get_rpc_transport(new_conf(), f"zmq://?{query}")
    try:
        address = Address("topic", "x", "t")
        ready = transport.driver.subscribe([address], lambda delivery: None, prefetch=1).ready
        sent = transport.driver.send(address, Message(b"", "t", "i"), mandatory=True)
        for future in (ready, sent):
            error = future.exception(EVENT_TIMEOUT)
            assert isinstance(error, TransportUnavailable)
            assert re.search("null (byte|character)", str(error))  # Python has another word since 3.13
    finally:
        transport.cleanup()


def test_run_directory_with_too_long_a_path_is_refused() -> None:
    """The text says by how much, before anything is tried."""
    with pytest.raises(ConfigurationError, match="too long by 16 bytes") as caught:
        driver_of("zmq:///" + "x" * 100)
    assert "107" in str(caught.value)
    # With Redis there is a directory in it for each Redis.
    with pytest.raises(ConfigurationError, match="too long by 5 bytes"):
        driver_of("zmq:///" + "x" * 80 + "?matchmaker=redis&redis_url=redis://h")


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("matchmaker=file", "set matchmaker_file"),
        ("matchmaker=redis", "set redis_url"),
        ("matchmaker=file&matchmaker_file=f&listen=tcp://127.0.0.1:*", "needs a fixed port"),
        ("matchmaker=file&matchmaker_file=f&listen=tcp://0.0.0.0:5&KEYS", "set advertise"),
        ("matchmaker=redis&redis_url=redis://h&listen=tcp://*:*&KEYS", "set advertise"),
    ],
)
def test_missing_options_of_a_matchmaker_are_refused(query: str, why: str) -> None:
    """It is known before anything is tried."""
    with pytest.raises(ConfigurationError, match=why):
        driver_of(f"zmq://?{query.replace('KEYS', 'insecure_let_anybody_send_and_read=true')}")


@pytest.mark.parametrize(
    "query",
    [
        "heartbeat=2000.1",
        "heartbeat=1e300",
        "connect_timeout=3600.1",
        "connect_timeout=1e300",
        f"max_message_size={2**31 + 1}",
        f"max_message_size={10**30}",
    ],
)
def test_a_value_that_is_too_large_is_refused(query: str) -> None:
    """At once: libzmq, or the protocol, could not take it, and every message would wait in vain."""
    with pytest.raises(ConfigurationError, match=query.partition("=")[0]):
        driver_of(f"zmq://?{query}")


def test_the_largest_values_can_be_used(tmp_path: pathlib.Path) -> None:
    """Messages are sent and received as with the defaults."""
    query = f"heartbeat=2000&connect_timeout=3600&max_message_size={2**31}"
    transport = get_rpc_transport(new_conf(), f"zmq://{tmp_path}?{query}")
    try:
        address = Address("topic", "x", "t")
        transport.driver.subscribe([address], lambda delivery: None, prefetch=1).ready.result(EVENT_TIMEOUT)
        sent = transport.driver.send(address, Message(b"", "t", "i"), mandatory=True)
        assert sent.result(EVENT_TIMEOUT).reached == 1
    finally:
        transport.cleanup()


@pytest.mark.parametrize(
    ("endpoint", "advertise", "expected"),
    [
        ("tcp://10.0.0.5:9501", "", "tcp://10.0.0.5:9501"),
        ("tcp://0.0.0.0:9501", "a.example", "tcp://a.example:9501"),
        ("tcp://0.0.0.0:9501", "a.example:80", "tcp://a.example:80"),
        ("tcp://[::]:9501", "[fd00::1]", "tcp://[fd00::1]:9501"),
        ("tcp://[::]:9501", "[fd00::1]:7", "tcp://[fd00::1]:7"),
        ("ipc:///run/x.sock", "a.example", "ipc:///run/x.sock"),
    ],
)
def test_advertise_replaces_the_host_and_perhaps_the_port(endpoint: str, advertise: str, expected: str) -> None:
    """By which address they reach this one; a port is as it was bound unless another is named."""
    from msgbus.drivers.zmq.matchmakers.base import advertised

    assert advertised(endpoint, advertise) == expected


def test_driver_declares_no_capability_that_needs_storage() -> None:
    """It stores nothing, and promises nothing that would need that."""
    driver = driver_of("zmq://")
    assert driver.capabilities == {Capability.ORDERED, Capability.INSPECT, Capability.REQUEUE}


@pytest.mark.parametrize(
    ("address", "body", "error"),
    [
        (Address("stored", "e", "t"), b"", CapabilityMissing),
        (Address("dead", "e", "t"), b"", CapabilityMissing),
        (Address("pool", "e", "t", name="p"), b"", InvalidTarget),
        (Address("topic", "e", "t"), b"x" * 2001, MessageTooLarge),
    ],
)
def test_message_that_cannot_be_sent_is_refused_without_opening_a_node(
    address: Address, body: bytes, error: type[Exception], tmp_path: Any
) -> None:
    """For such a message no node is made."""
    transport = get_rpc_transport(new_conf(), f"zmq://{tmp_path}/run?max_message_size=2000")
    sent = transport.driver.send(address, Message(body, "text/plain", "id", 5.0), mandatory=True)
    assert isinstance(sent.exception(0), error)
    assert not (tmp_path / "run").exists()
    transport.cleanup()


def test_subscribing_to_dead_letters_fails(tmp_path: pathlib.Path) -> None:
    """They are not stored: the subscription fails."""
    transport = get_rpc_transport(new_conf(), f"zmq://{tmp_path}/run")
    subscription = transport.driver.subscribe([Address("dead", "e", "t")], lambda _: None, prefetch=1)
    assert isinstance(subscription.ready.exception(0), CapabilityMissing)
    assert subscription.close().done()
    transport.cleanup()


@pytest.mark.parametrize("topic", ["half \ud800", 5])
def test_subscribing_to_a_name_that_is_no_text_fails(tmp_path: pathlib.Path, topic: Any) -> None:
    """Alone: others can be subscribed to afterwards."""
    transport = get_rpc_transport(new_conf(), f"zmq://{tmp_path}")
    try:
        for address in (Address("topic", "x", topic), Address("topic", "x", "t")):
            ready = transport.driver.subscribe([address], lambda delivery: None, prefetch=1).ready
            assert isinstance(ready.exception(EVENT_TIMEOUT), InvalidTarget if address.topic == topic else type(None))
    finally:
        transport.cleanup()


def test_importing_the_driver_imports_no_pyzmq_and_does_not_shadow_it() -> None:
    """Importing the driver imports nothing of ZeroMQ; using it finds the library, not the module of the same name."""
    code = (
        "import sys, msgbus.drivers.zmq; assert 'zmq' not in sys.modules; "
        "from msgbus.drivers.zmq import links; assert links.zmq.zmq_version()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
