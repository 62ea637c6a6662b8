"""msgbus.drivers.zmq.matchmakers.redis: what needs no Redis. The rest is in tests/functional."""

from __future__ import annotations

import pathlib
import socket
import sys
import threading

import msgspec
import pytest

from msgbus import ConfigurationError, DriverLoadFailure, TransportUnavailable
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.matchmakers import redis as zmq_redis
from msgbus.drivers.zmq.matchmakers.base import Entry
from msgbus.drivers.zmq.matchmakers.redis import RedisMatchmaker, folder_for
from msgbus.drivers.zmq.matchmakers.redis_server import Server
from msgbus.transport import get_rpc_transport
from tests.support import EVENT_TIMEOUT, new_conf

NODE = "0123456789abcdef"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://h", "h:6379/0"),
        ("redis://user:pw@h:7/3", "h:7/3"),
        ("rediss://:pw@h", "h:6379/0"),
        ("unix:///run/redis.sock?db=2", "/run/redis.sock/2"),
    ],
)
def test_name_has_no_user_and_no_password(url: str, name: str) -> None:
    """Where it is, without user and password."""
    assert Server(url).name == name


def test_explained_error_has_no_password() -> None:
    """Even if the library put one into it."""
    server = Server("redis://user:s3%40cret@h")
    assert server.explain(OSError("no s3@cret\nhere")) == "no *** here"
    assert server.explain(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize("url", ["", "h:6379", "http://h", "redis://h:x", "redis://h:99999999"])
def test_invalid_url_is_refused(url: str) -> None:
    """The text says how such a URL is written."""
    with pytest.raises(ConfigurationError, match=r"is invalid: write redis://USER:PASSWORD@HOST:PORT/DB"):
        Server(url)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text says what to install."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(DriverLoadFailure, match=r"pip install 'msgbus\[redis\]'"):
        Server("redis://h")


def test_each_redis_and_database_has_a_folder_of_its_own() -> None:
    """Those who use another Redis, or another database of it, do not meet in the run directory."""
    folders = {folder_for("/run/x", Server(url)) for url in ("redis://a", "redis://:pw@a", "redis://a/1", "redis://b")}
    assert len(folders) == 3
    assert all(folder.startswith("/run/x/") for folder in folders)


def test_invalid_node_id_is_ignored() -> None:
    """What somebody else has published there."""
    assert zmq_redis._node_of(NODE.encode()) == NODE
    for data in (b"", b"../../etc/passwd", NODE.encode() + b"0", b"\xff" * 16, 1, None):
        assert zmq_redis._node_of(data) == ""


@pytest.mark.parametrize(
    "entry",
    [
        Entry("f" * 16, 1, "h", ["tcp://h:1"], []),
        Entry(NODE, 1, "h\nroot logged in", ["tcp://h:1"], []),
        Entry(NODE, 1, "h", [], []),
        Entry(NODE, 1, "h", ["tcp://h:1", "ipc:///tmp/x"], []),
    ],
)
def test_invalid_entry_is_left_out_and_logged(entry: Entry, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out, and one line of the log says so."""
    assert zmq_redis._read_entry(NODE, msgspec.msgpack.encode(entry)) is None
    assert zmq_redis._read_entry(NODE, b"\xff") is None
    assert zmq_redis._read_entry(NODE, b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0") is None
    assert len(caplog.records) == 3
    assert "\n" not in caplog.records[0].getMessage()
    good = Entry(NODE, 1, "h", ["tcp://h:1"], [])
    assert zmq_redis._read_entry(NODE, msgspec.msgpack.encode(good)) == good


@pytest.mark.parametrize(
    "url", ["redis://h?ssl_ca_certs=/x", "redis://h?ssl_cert_reqs=required", "unix:///x?ssl_ca_certs=/x"]
)
def test_options_of_tls_in_a_url_without_tls_are_refused(url: str) -> None:
    """They would have no effect: it is an error when the transport is made."""
    with pytest.raises(ConfigurationError, match="has to begin with rediss://"):
        Server(url)


@pytest.mark.parametrize("url", ["redis://h?no_such_option=1", "rediss://h?ssl_cert_reqs=nonsense"])
def test_unknown_options_in_a_url_are_refused(url: str) -> None:
    """An error when the transport is made, and not at the first connection."""
    with pytest.raises(ConfigurationError, match=r"redis_url of .* is invalid"):
        Server(url)


def test_options_of_tls_in_a_url_with_tls_are_accepted() -> None:
    """Options of TLS are right in a URL that begins with rediss://."""
    assert Server("rediss://:pw@h:7/2?ssl_ca_certs=/x").name == "h:7/2"


def test_closing_does_not_wait_for_a_redis_that_says_nothing(tmp_path: pathlib.Path) -> None:
    """It is called where all I/O is done, perhaps on a program's event loop; other threads may wait for the end."""
    loop = Loop("test-redis")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        matchmaker = RedisMatchmaker(loop, Server(url), str(tmp_path), lambda: None)
        matchmaker.open()
        matchmaker.register(Entry(matchmaker.node, 1, "here", ["tcp://127.0.0.1:1"], []))
        connection = silent.accept()[0]
        matchmaker.close()
        assert not matchmaker.node
        with pytest.raises(TransportUnavailable, match="still being closed"):
            matchmaker.open()
        connection.close()
    matchmaker.wait_closed(loop.now() + EVENT_TIMEOUT)
    assert not [thread for thread in threading.enumerate() if "msgbus-zmq-redis" in thread.name]
    matchmaker.open()
    matchmaker.close()
    loop.close()


@pytest.mark.parametrize("which", ["work", "listen"])
def test_thread_that_cannot_be_started_is_the_reason(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """What is sent fails at once, and is sent when threads can be started again."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == f"msgbus-zmq-redis-{which}":
            raise RuntimeError("can't start new thread")
        start(thread)

    def send() -> BaseException | None:
        return driver.send(Address("topic", "x", "t"), Message(b"", "t", "i", 0.5), mandatory=True).exception(60)

    transport = get_rpc_transport(new_conf(), f"zmq://{tmp_path}?matchmaker=redis&redis_url=redis://127.0.0.1:1/")
    driver = transport.driver
    try:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            assert f"the I/O thread msgbus-zmq-redis-{which} cannot be started: can't start new thread" in str(send())
        until(lambda: "Connection refused" in str(send()), "threads are started again")
    finally:
        transport.cleanup()


def test_host_that_cannot_be_a_name_is_the_reason(tmp_path: pathlib.Path) -> None:
    """What is sent fails with it, as with a Redis that cannot be reached."""
    transport = get_rpc_transport(new_conf(), f"zmq://{tmp_path}?matchmaker=redis&redis_url=redis://a..b/")
    try:
        sent = transport.driver.send(Address("topic", "x", "t"), Message(b"", "t", "i", 0.5), mandatory=True)
        error = sent.exception(EVENT_TIMEOUT)
        assert isinstance(error, TransportUnavailable)
        assert "Redis at a..b:6379/0, where nodes find each other, cannot be used" in str(error)
    finally:
        transport.cleanup()
