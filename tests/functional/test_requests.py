"""What a method knows of its request, and what it leaves behind, on each message system."""

from __future__ import annotations

import pathlib
import uuid
from collections.abc import Callable, Iterator

import pytest

from msgbus import NoCurrentRequest, Target, current_request, get_rpc_client, get_rpc_server, get_rpc_transport
from msgbus.conformance import Harness
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import Findings
from tests.core.test_current import Endpoint as Knowing
from tests.core.test_request_context import Endpoint as Setting
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.support import EVENT_TIMEOUT, new_conf


def rabbitmq(request: pytest.FixtureRequest, version: str, more: str = "") -> str:
    """The URL of a RabbitMQ, whose queues go when the tests are over."""
    node: RabbitMQ = request.getfixturevalue(f"rabbitmq_{version}")
    if not node.alive():  # an earlier test failed half-way
        node.start()
    return f"{node.url}?queue_expires=120&server_expires=120{more}"


def qpid(request: pytest.FixtureRequest) -> str:
    """The URL of a Broker-J."""
    broker: Qpid = request.getfixturevalue("qpid")
    return f"{broker.url}?durable=false&keep_server_queues=false"


SYSTEMS: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "RabbitMQ 3.10": lambda request: rabbitmq(request, "310"),
    "RabbitMQ 4.3": lambda request: rabbitmq(request, "43"),
    "RabbitMQ 4.3, quorum queues": lambda request: rabbitmq(request, "43", "&quorum_queues=true"),
    "Qpid": qpid,
    "ZeroMQ": lambda request: f"zmq://{request.getfixturevalue('tmp_path')}/run",
}


@pytest.fixture(params=SYSTEMS)
def url(request: pytest.FixtureRequest) -> str:
    """Each message system in turn."""
    return SYSTEMS[request.param](request)


def test_what_a_request_sets_no_other_sees(url: str) -> None:
    """Calls, casts and streams of a server with one thread leave nothing to each other, and know who they are."""
    transport = get_rpc_transport(new_conf(executor_thread_pool_size=1, control_exchange=uuid.uuid4().hex), url)
    setting, knowing = Setting(), Knowing()
    server = get_rpc_server(transport, Target(topic="foo", server="h1"), [setting, knowing])
    server.start()
    client = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    for prepared in (client, client.prepare(delivery="at_least_once"), client.prepare(server="h1")):
        prepared.call({}, "login")
        assert prepared.call({}, "whoami") == "nobody"
        prepared.cast({}, "login")
        assert list(prepared.multicall({}, "steps", name="bob")) == ["nobody", "bob", "bob"]
        assert prepared.call({}, "whoami") == "nobody"
    admin = get_rpc_client(transport, Target(topic="foo", namespace="admin"), timeout=EVENT_TIMEOUT)
    admin.call({"user": "ada"}, "look")
    (found,) = knowing.found
    assert (found.method, found.server, found.topic, found.attempts) == ("look", "h1", "foo", 1)
    assert found.call_id is not None
    ((left, _cancelled),) = knowing.states
    assert 0 < left <= EVENT_TIMEOUT
    with pytest.raises(NoCurrentRequest):
        current_request()
    assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


@pytest.fixture
def bus(url: str, tmp_path: pathlib.Path) -> Iterator[Bus]:
    """Servers in processes of their own, and what they write down."""
    harness = Harness()
    harness.url = url
    bus = Bus(harness, tmp_path, Findings())
    yield bus
    bus.close()


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_the_attempts_of_a_cast_are_counted_on_at_the_next_server(bus: Bus, killed: bool) -> None:
    """One that raised at a server which then stops, or is killed, is given up after no more attempts than at one."""
    servers = {server.name: server for server in bus.serve("s1", "s2", rpc_cast_retries=2)}
    bus.client(delivery="at_least_once").cast({}, "fail", kind="trouble", key="k")
    (first,) = bus.ran("k")
    if killed:
        bus.kill(servers[first])
    else:
        servers[first].stop()
        assert servers[first].wait(EVENT_TIMEOUT) == 0
    bus.saw("dead", "k", seconds=30)
    (second,) = set(servers) - {first}
    ran = [entry.server for entry in bus.journal.entries("run", "k")]
    # One that was killed may have run it more than once: nobody can know.
    assert ran[ran.index(second) :] == [second] * 2
    assert killed or len(ran) == 3
