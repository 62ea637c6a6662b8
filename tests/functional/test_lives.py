"""Programs that fork, end without clean-up, or drop their transports: see tests/lives.py. Here over brokers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests import lives
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.support import EVENT_TIMEOUT

PROGRAMS = [*lives.FORKS, lives.ends_without_cleanup, lives.dropped_transports_are_collected]
# `sys.argv[2]` are seconds in which nothing happens, so that the loop's own thread sleeps, and not the main thread.
LOSES_DESCRIPTORS = """
import os, sys, time
from msgbus import MessagingException, Target, get_rpc_client, get_rpc_transport
from msgbus.conformance.endpoint import make_conf

client = get_rpc_client(get_rpc_transport(make_conf({}), sys.argv[1]), Target(topic="lives"), timeout=2)
client.call({}, "pid")
time.sleep(float(sys.argv[2]))
os.closerange(3, 256)
for verb in ("call", "cast", "call", "cast"):
    try:
        getattr(client, verb)({}, "pid")
    except MessagingException as exc:
        print(type(exc).__name__, exc)
client.transport.cleanup()
"""
each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)


@each_program
def test_on_rabbitmq(program: Callable[[str], None], rabbitmq: RabbitMQ) -> None:
    """See the program's text."""
    lives.run(program, rabbitmq.url)


@each_program
def test_on_qpid(program: Callable[[str], None], qpid: Qpid) -> None:
    """See the program's text."""
    lives.run(program, f"{qpid.url}?durable=false")


@pytest.mark.parametrize("idle", [0.0, 0.1])
@pytest.mark.parametrize("broker", ["rabbitmq_310", "rabbitmq_43", "qpid"])
def test_descriptors_that_others_close_are_named(broker: str, idle: float, request: pytest.FixtureRequest) -> None:
    """A library that makes daemons closes them all: from then on all errors say so, and none waits for a connection.

    Only the request that was being sent may wait for its answer until its time is over.
    """
    node = request.getfixturevalue(broker)
    url = f"{node.url}?durable=false" if isinstance(node, Qpid) else node.url
    transport = lives.new(url)
    server = lives.serve(transport, lives.Endpoint())
    ended = subprocess.run(
        [sys.executable, "-c", LOSES_DESCRIPTORS, url, str(idle)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    server.stop()
    server.wait(EVENT_TIMEOUT)
    transport.cleanup()
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    said = ended.stdout.splitlines()
    assert len(said) == 4, (said, ended.stderr)
    assert all("make the transport after that" in line for line in said), said
    assert {line.partition(" ")[0] for line in said[2:]} == {"TransportUnavailable"}, said
