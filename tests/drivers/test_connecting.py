"""What a transport opens, and what it says of several hosts none of which can be reached: for every driver."""

from __future__ import annotations

import os
import pathlib
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from msgbus import MessagingException, Target, TransportUnavailable, get_rpc_client, get_rpc_server
from msgbus.drivers.toolkit.loop import Loop
from tests.support import EVENT_TIMEOUT, new_transport

pytest.importorskip("proton", reason="the qpid driver needs it")

DRIVERS = ["rabbit://h", "qpid://h", "zmq:///DIR", "fake://h"]


def opened() -> set[tuple[str, str]]:
    """The descriptors of this process, and what each is."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except FileNotFoundError:  # that of listing them
            pass
    return found


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Have this process at its limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("url", DRIVERS)
def test_constructors_open_nothing(url: str, tmp_path: pathlib.Path) -> None:
    """A transport, a client and a server that are made and not used have no descriptor and no thread."""
    new_transport(url.replace("DIR", f"{tmp_path}/a")).cleanup()  # what is imported for the first time
    before, threads = opened(), threading.enumerate()
    transport = new_transport(url.replace("DIR", f"{tmp_path}/b"))
    get_rpc_client(transport, Target(topic="t"))
    get_rpc_server(transport, Target(topic="t", server="s"), [])
    assert opened() == before
    assert threading.enumerate() == threads
    transport.cleanup()
    assert opened() == before


@pytest.mark.parametrize("url", DRIVERS[:3])
def test_first_use_without_descriptors_is_our_error(url: str, tmp_path: pathlib.Path) -> None:
    """It is raised by the verb, not by the constructor, and the transport works when there are some again."""
    another = new_transport(url.replace("DIR", f"{tmp_path}/a"))
    with pytest.raises(MessagingException):  # Once before, so that all is imported.
        get_rpc_client(another, Target(topic="t"), timeout=0.5).call({}, "m")
    another.cleanup()
    transport = new_transport(url.replace("DIR", f"{tmp_path}/b"), rpc_response_timeout=0.5)
    client = get_rpc_client(transport, Target(topic="t"))
    server = get_rpc_server(transport, Target(topic="t", server="s"), [])
    with no_descriptors_left():
        with pytest.raises(TransportUnavailable, match=r"cannot be started: .*Too many open files.*ulimit"):
            client.call({}, "m")
        with pytest.raises(TransportUnavailable, match="cannot be started"):
            client.cast({}, "m")
        with pytest.raises(TransportUnavailable, match="cannot be started"):
            server.start()
    with pytest.raises(MessagingException, match=r"h:5672|nobody|no server"):
        client.call({}, "m")
    transport.cleanup()


def test_what_could_not_be_sent_is_not_run_later() -> None:
    """Its caller got an error: that it happens all the same would be a surprise."""
    made = Loop("test-loop")
    ran: list[str] = []
    done = threading.Event()
    with no_descriptors_left(), pytest.raises(TransportUnavailable):
        made.call(lambda: ran.append("refused"))
    made.call(done.set)
    assert done.wait(EVENT_TIMEOUT)
    made.close()
    assert ran == []


def refusing_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize("scheme", ["rabbit", "qpid"])
def test_each_host_that_was_tried_is_named_with_its_own_reason(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    """An operator sees why fail-over failed: each host, its user and its cause, and never a password."""
    one, two = refusing_port(), refusing_port()
    hosts = f"app:s3cr3t@127.0.0.1:{one},no-such-host.invalid:7,other:s3cr3t@127.0.0.1:{two}"
    transport = new_transport(f"{scheme}://{hosts}/")
    client = get_rpc_client(transport, Target(topic="t"), timeout=EVENT_TIMEOUT)
    texts = []
    for timeout in (3, 3):
        with pytest.raises(TransportUnavailable) as caught:
            client.prepare(timeout=timeout).call({}, "m")
        texts.append(str(caught.value))
    text = texts[1]
    assert text.index(f"127.0.0.1:{one} (user app") < text.index("no-such-host.invalid:7 (user app")
    assert f"127.0.0.1:{two} (user other" in text
    assert text.count("Connection refused") == 2
    assert text.count("also ") == 2
    logged = [record.getMessage() for record in caplog.records if "cannot be made" in record.msg]
    assert len(logged) == 3  # once for each host
    assert "s3cr3t" not in text + "".join(logged)
    transport.cleanup()
