from __future__ import annotations

import contextvars
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import (
    MessagingTimeout,
    RPCClient,
    RPCServer,
    Target,
    TransportUnavailable,
    dead_letters,
    get_rpc_client,
    get_rpc_server,
)
from msgbus.deadline import bounded, current, wait_for
from msgbus.testing import MemoryBus
from tests.support import EVENT_TIMEOUT, Awaited, new_transport


@pytest.mark.parametrize(
    ("inherited", "own", "result"),
    [(None, 5.0, 5.0), (3.0, 5.0, 3.0), (7.0, 5.0, 5.0), (5.0, 5.0, 5.0), (3.0, float("inf"), 3.0)],
)
def test_the_earlier_one_counts(inherited: float | None, own: float, result: float) -> None:
    """Of one's own deadline and the inherited one, the earlier one counts."""

    def run() -> float:
        current.set(inherited)
        return bounded(own)

    assert contextvars.copy_context().run(run) == result


def test_another_thread_inherits_nothing() -> None:
    """The deadline belongs to what a handler runs itself, not to the threads of the process."""
    found: list[float | None] = []

    def run() -> None:
        current.set(3.0)
        thread = threading.Thread(target=lambda: found.append(current.get()))
        thread.start()
        thread.join()

    contextvars.copy_context().run(run)
    assert found == [None]
    assert current.get() is None


def test_wait_for() -> None:
    """`wait_for` waits until the deadline; a timeout that the future failed with is raised as it is."""
    transport = new_transport()
    loop, driver = transport.loop, transport.driver
    future: Future[None] = Future()
    with pytest.raises(TransportUnavailable, match=r"^cannot do it the in-memory .*: gave up"):
        wait_for(loop, future, time.monotonic(), "cannot do it", driver)
    future.set_exception(MessagingTimeout("theirs"))
    with pytest.raises(MessagingTimeout, match="theirs"):
        wait_for(loop, future, time.monotonic(), "cannot do it", driver)


class Held(Awaited):
    """An endpoint whose methods run until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def hold(self, _ctxt: object) -> None:
        self.came.release()
        self.go_on.wait(EVENT_TIMEOUT)

    def count(self, _ctxt: object) -> Iterator[int]:
        yield 1


class Waiting:
    """A server and a client whose send window has one place."""

    def __init__(self) -> None:
        self.transport = new_transport(rpc_send_window=1)
        self.endpoint = Held()
        self.server: RPCServer = get_rpc_server(self.transport, Target(topic="t", server="s"), [self.endpoint])
        self.client: RPCClient = get_rpc_client(self.transport, Target(topic="t"))
        self.server.start()


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    """Where one waits."""
    waiting = Waiting()
    yield waiting
    waiting.endpoint.go_on.set()
    waiting.transport.cleanup()


def expect_nothing(_waiting: Waiting, seconds: Any) -> object:
    """Wait for what is not sent."""
    with MemoryBus() as bus:
        return bus.sent.expect("cast", "m", timeout=seconds)


WAITS: dict[str, Callable[[Waiting, Any], object]] = {
    "timeout": lambda found, seconds: found.client.prepare(timeout=seconds).call({}, "count"),
    "deadline": lambda found, seconds: list(found.client.prepare(deadline=seconds).multicall({}, "count")),
    "monitor": lambda found, seconds: found.client.prepare(call_monitor_timeout=seconds).call({}, "count"),
    "ping": lambda found, seconds: found.client.ping(seconds),
    "start": lambda found, seconds: get_rpc_server(found.transport, Target(topic="u", server="s"), []).start(seconds),
    "healthy": lambda found, seconds: found.server.healthy(seconds),
    "wait": lambda found, seconds: found.server.wait(seconds),
    "look": lambda found, seconds: dead_letters.look(found.transport, Target(topic="t"), seconds),
    "requeue": lambda found, seconds: dead_letters.requeue(found.transport, Target(topic="t"), timeout=seconds),
    "purge": lambda found, seconds: dead_letters.purge(found.transport, Target(topic="t"), timeout=seconds),
    "expect": expect_nothing,
}


@pytest.mark.parametrize("seconds", [math.nan, "5", [5]], ids=str)
@pytest.mark.parametrize("wait", WAITS)
def test_what_is_no_number_of_seconds(waiting: Waiting, wait: str, seconds: Any) -> None:
    """Whatever waits refuses it, and says so, before it does anything."""
    with pytest.raises(ValueError, match=r"is a number of seconds, not (nan|'5'|\[5\])$"):
        WAITS[wait](waiting, seconds)


LONG = pytest.mark.parametrize("seconds", [math.inf, 1e300, 10**400, 1e10], ids=["inf", "1e300", "10**400", "1e10"])


@LONG
@pytest.mark.parametrize("wait", sorted(WAITS.keys() - {"expect"}))
def test_a_wait_may_have_no_bound(waiting: Waiting, wait: str, seconds: Any) -> None:
    """Infinity, and more seconds than the clocks know, are as long as it takes."""
    WAITS[wait](waiting, seconds)


@LONG
def test_what_runs_may_be_waited_for_without_a_bound(waiting: Waiting, seconds: Any) -> None:
    """By `wait` of a server, and by a request for which there is no place in the send window."""
    holds = threading.Thread(target=lambda: waiting.client.call({}, "hold"))
    holds.start()
    waiting.endpoint.wait()
    threading.Timer(0.05, waiting.endpoint.go_on.set).start()
    assert waiting.client.prepare(timeout=seconds).call({}, "count") == 1
    holds.join(EVENT_TIMEOUT)
    waiting.endpoint.go_on.clear()
    waiting.client.cast({}, "hold")
    waiting.endpoint.wait()
    threading.Timer(0.05, waiting.endpoint.go_on.set).start()
    assert waiting.server.wait(seconds) == 0


@pytest.mark.parametrize("seconds", [-1, -math.inf, -(10**400)], ids=["-1", "-inf", "-10**400"])
def test_less_than_no_time_is_none(waiting: Waiting, seconds: Any) -> None:
    """Nothing is sent, and nothing is waited for."""
    with pytest.raises(MessagingTimeout, match="nothing was sent"):
        waiting.client.prepare(timeout=seconds).call({}, "count")
    with pytest.raises(MessagingTimeout, match="nothing was sent"):
        waiting.client.prepare(deadline=seconds).multicall({}, "count")
    waiting.client.cast({}, "hold")
    waiting.endpoint.wait()
    assert waiting.server.wait(seconds) == 1
