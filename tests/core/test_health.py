"""Whether a server takes requests, and whether it works at all: `RPCServer.healthy`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from msgbus import Health, RPCServer, Target, TransportUnavailable, get_rpc_client, get_rpc_server
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.fake import FakeDriver
from tests.support import EVENT_TIMEOUT, new_transport

WELL = Health(live=True, ready=True, why=())


class Service:
    """One method that waits, on a thread."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go_on = threading.Event()

    def wait(self, _ctxt: Any) -> None:
        self.began.set()
        assert self.go_on.wait(EVENT_TIMEOUT)

    def own_health(self, _ctxt: Any) -> bool:
        return bool(self.server.healthy())

    server: RPCServer


class Asynchronous(Service):
    """One method that blocks the event loop."""

    async def block(self, _ctxt: Any) -> None:
        self.began.set()
        while not self.go_on.is_set():
            time.sleep(0.005)  # noqa: ASYNC251  # that is the mistake


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    """Ends what a test has started."""
    with ExitStack() as stack:
        yield stack


def make(cleanup: ExitStack, service: Service, **overrides: Any) -> RPCServer:
    """A server that is not started."""
    transport = new_transport(**overrides)
    cleanup.callback(transport.cleanup)
    server = service.server = get_rpc_server(transport, Target(topic="foo", server="h1"), [service])
    cleanup.callback(server.wait, EVENT_TIMEOUT)
    cleanup.callback(service.go_on.set)
    return server


@pytest.mark.parametrize("service", [Service(), Asynchronous()])
def test_a_server_is_ready_from_its_start_to_its_stop(cleanup: ExitStack, service: Service) -> None:
    """Before and afterwards it is live, and says why it is not ready."""
    server = make(cleanup, service)
    assert server.healthy() == Health(live=True, ready=False, why=("it was not started, or it was stopped",))
    server.start(EVENT_TIMEOUT)
    assert server.healthy() == WELL
    assert server.healthy()
    client = get_rpc_client(server.transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    assert client.call({}, "own_health") is True
    running = Task(client.call, {}, "wait")
    assert service.began.wait(EVENT_TIMEOUT)
    server.stop()
    stopping = server.healthy()
    assert (stopping.live, stopping.ready, stopping.why) == (True, False, ("it is being stopped",))
    assert not stopping
    service.go_on.set()
    running.result()
    server.wait(EVENT_TIMEOUT)
    assert server.healthy().why == ("it was not started, or it was stopped",)
    server.start(EVENT_TIMEOUT)
    assert server.healthy() == WELL


def test_a_busy_server_is_healthy(cleanup: ExitStack) -> None:
    """All its threads are taken: it has much to do, and a new process would not do it faster."""
    service = Service()
    server = make(cleanup, service, executor_thread_pool_size=1)
    server.start(EVENT_TIMEOUT)
    client = get_rpc_client(server.transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    running = Task(client.call, {}, "wait")
    assert service.began.wait(EVENT_TIMEOUT)
    assert server.healthy() == WELL
    service.go_on.set()
    running.result()


def test_a_server_that_waits_for_the_message_system_is_live(
    cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not ready without a connection, and ready again with one."""
    server = make(cleanup, Service())
    server.start(EVENT_TIMEOUT)
    monkeypatch.setattr(FakeDriver, "up_since", property(lambda _driver: None))
    found = server.healthy()
    assert (found.live, found.ready) == (True, False)
    assert found.why == (f"it has no connection: {server.transport.driver.state}",)
    monkeypatch.undo()
    assert server.healthy() == WELL


def test_a_server_whose_transport_is_closed_is_not_live(cleanup: ExitStack) -> None:
    """It cannot be started any more."""
    server = make(cleanup, Service())
    server.transport.cleanup()
    with pytest.raises(Exception, match="closed"):
        server.start(0.1)
    found = server.healthy()
    assert (found.live, found.ready) == (False, False)
    assert found.why[0] == "its transport was closed"


def test_a_server_whose_io_is_blocked_is_not_live(cleanup: ExitStack) -> None:
    """For example by a callback of a driver that waits. Afterwards it is well again."""
    server = make(cleanup, Service())
    server.start(EVENT_TIMEOUT)
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait(EVENT_TIMEOUT)

    server.transport.loop.call(block)
    assert blocked.wait(EVENT_TIMEOUT)
    found = server.healthy(0.1)
    assert (found.live, found.ready) == (False, False)
    assert "its I/O has not reacted for 0.1 s" in found.why[0]
    go_on.set()
    until(lambda: server.healthy() == WELL, "the end of the block")


def test_a_loop_that_has_lost_its_descriptor_is_not_live(cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text says what is wrong."""
    server = make(cleanup, Service())
    server.start(EVENT_TIMEOUT)

    def call(*_args: Any) -> bool:
        raise TransportUnavailable("other code has closed a descriptor")

    monkeypatch.setattr(server.transport.loop, "call", call)
    found = server.healthy()
    assert (found.live, found.ready) == (False, False)
    assert found.why == ("its I/O does not work: other code has closed a descriptor",)
    monkeypatch.undo()


def test_a_server_whose_event_loop_is_blocked_is_not_live(cleanup: ExitStack) -> None:
    """Nothing else could run there."""
    service = Asynchronous()
    server = make(cleanup, service)
    server.start(EVENT_TIMEOUT)
    client = get_rpc_client(server.transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    running = Task(client.call, {}, "block")
    assert service.began.wait(EVENT_TIMEOUT)
    found = server.healthy(0.1)
    assert (found.live, found.ready) == (False, False)
    assert found.why == ("its event loop has not reacted for 0.1 s: an async method blocks it, or it was closed",)
    service.go_on.set()
    running.result()
    until(lambda: server.healthy() == WELL, "the end of the block")
