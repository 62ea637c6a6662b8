"""Unchanged oslo.messaging over msgbus's message systems, and beside stock peers, in processes of their own."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.functional.brokers.processes import poll
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ

PEER = pathlib.Path(__file__).with_name("oslo_peer.py")
WORLDS = ["threads", "eventlet"]

EXPECTED = {
    "call": {"value": {"a": [1, "ü", None]}, "user": "u"},
    "to server": {"value": 2, "user": "u"},
    "to topic and host": {"value": 3, "user": "u"},
    "odd": "[nan, inf, 1000000000000000000000000000000]",
    "ping": "pong",
    "fail {'known': True}": "ValueError no such thing",
    "fail {'known': False}": "RemoteError NotFound",
    "missing {}": "RemoteError NoSuchMethod",
    "concurrent": True,
    "waited": "released",
    "monitored": "done",
    "nobody": "timeout",
}
NOTES = sorted(
    [
        "cast",
        "fanout",
        "cast to server",
        "info messaging 1",
        "error messaging 2",
        "info messagingv2 1",
        "error messagingv2 2",
    ]
)


def command(world: str, role: str, url: str, topic: str, journal: pathlib.Path) -> list[str]:
    """What starts a peer."""
    return [sys.executable, "-W", "ignore", str(PEER), world, role, url, topic, str(journal)]


@contextmanager
def serving(world: str, url: str, topic: str, journal: pathlib.Path) -> Iterator[None]:
    """A server, which ends cleanly at the end."""
    errors = journal.with_suffix(".err")
    with (
        errors.open("w") as file,
        subprocess.Popen(
            command(world, "server", url, topic, journal),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == "ready\n", errors.read_text()
            yield
            server.communicate(timeout=30)
            assert server.returncode == 0, errors.read_text()
        finally:
            server.kill()


def lines(journal: pathlib.Path) -> list[str]:
    """What was noted so far."""
    return sorted(journal.read_text().splitlines()) if journal.exists() else []


def check(server_world: str, server_url: str, client_world: str, client_url: str, folder: pathlib.Path) -> None:
    """A client asks a server in every way, and finds what it has to."""
    journal = folder / "journal"
    topic = f"topic-{folder.name}"
    with serving(server_world, server_url, topic, journal):
        asked = subprocess.run(
            command(client_world, "client", client_url, topic, journal),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert asked.returncode == 0, asked.stderr
        found: dict[str, Any] = json.loads(asked.stdout)
        assert found == EXPECTED
        poll(lambda: len(lines(journal)) >= len(NOTES), 20, "all casts and notifications")
        assert lines(journal) == NOTES
        assert asked.stderr.count("nobody reads") <= 1


@pytest.mark.parametrize("world", WORLDS)
def test_a_service_over_rabbitmq(world: str, rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> None:
    """Calls, casts, fanouts, failures, monitors and notifications, with threads and with eventlet."""
    url = f"msgbus+{rabbitmq.url}"
    check(world, url, world, url, tmp_path)


@pytest.mark.parametrize("world", WORLDS)
def test_a_service_over_zeromq(world: str, tmp_path: pathlib.Path) -> None:
    """The same without a broker."""
    url = f"msgbus+zmq://?run_dir={tmp_path}/z"
    check(world, url, world, url, tmp_path)


@pytest.mark.parametrize("world", WORLDS)
def test_a_service_over_qpid(world: str, qpid: Qpid, tmp_path: pathlib.Path) -> None:
    """The same over Qpid."""
    url = f"msgbus+{qpid.url}?durable=false"  # Its virtual host is in memory.
    check(world, url, world, url, tmp_path)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("ours", ["server", "client"])
def test_beside_a_stock_peer(world: str, ours: str, rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> None:
    """A service that was switched, and one that was not, work together in both directions."""
    urls = {True: f"msgbus+{rabbitmq.url}", False: rabbitmq.url}
    check(world, urls[ours == "server"], world, urls[ours == "client"], tmp_path)


def test_threads_beside_eventlet(rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> None:
    """Which of the two a service uses does not matter to the others."""
    url = f"msgbus+{rabbitmq.url}"
    check("eventlet", url, "threads", url, tmp_path)


FORKING = """
import os, sys
import oslo_messaging
from oslo_config import cfg
cfg.CONF([], default_config_files=[])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, sys.argv[1])
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="forking"), timeout=20)
class Endpoint:
    def pid(self, ctxt):
        return os.getpid()
def serve(name):
    target = oslo_messaging.Target(topic="forking", server=name)
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()])
    server.start()
    return server
server = serve("parent")
assert client.prepare(server="parent").call({}, "pid") == os.getpid()
read, write = os.pipe()
stop_read, stop_write = os.pipe()
child = os.fork()
if not child:
    os.close(stop_write)
    own = serve("child")
    assert client.prepare(server="parent").call({}, "pid") == os.getppid()
    assert client.prepare(server="child").call({}, "pid") == os.getpid()
    os.write(write, b"x")
    os.read(stop_read, 1)
    own.stop()
    own.wait()
    transport.cleanup()
    os._exit(0)
os.close(write)
os.close(stop_read)
assert os.read(read, 1) == b"x"
assert client.prepare(server="child").call({}, "pid") == child
assert client.prepare(server="parent").call({}, "pid") == os.getpid()
os.close(stop_write)
assert os.waitpid(child, 0)[1] == 0
server.stop()
server.wait()
transport.cleanup()
print("done")
"""


def fork(url: str) -> None:
    """Run the program above."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, url], capture_output=True, text=True, timeout=100, check=False
    )
    assert run.stdout == "done\n", run.stderr


def test_a_transport_that_was_used_before_a_fork_over_rabbitmq(rabbitmq: RabbitMQ) -> None:
    """Parent and child call and serve, each over connections of its own: as under cotyledon and oslo.service."""
    fork(f"msgbus+{rabbitmq.url}")


def test_a_transport_that_was_used_before_a_fork_over_zeromq(tmp_path: pathlib.Path) -> None:
    """The same without a broker."""
    fork(f"msgbus+zmq://?run_dir={tmp_path}/z")
