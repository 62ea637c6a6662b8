"""Long streams on real message systems: every item comes once and in order, and memory stays flat on both sides."""

from __future__ import annotations

import pathlib
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from msgbus import RPCClient, Target, get_rpc_client, get_rpc_server
from msgbus.base_client import STREAM_BYTES, STREAM_WINDOW
from msgbus.stream_sender import FRAME_BYTES
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.services import Connect
from tests.support import EVENT_TIMEOUT


def on_rabbitmq(request: pytest.FixtureRequest, version: str) -> str:
    """The URL of a RabbitMQ that runs."""
    node: RabbitMQ = request.getfixturevalue(f"rabbitmq_{version}")
    if not node.alive():  # an earlier test failed half-way
        node.start()
    return node.url


def on_qpid(request: pytest.FixtureRequest) -> str:
    """The URL of the Broker-J."""
    broker: Qpid = request.getfixturevalue("qpid")
    return broker.url


URLS: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "kombu on 3.10": lambda request: on_rabbitmq(request, "310"),
    "kombu on 4.3": lambda request: on_rabbitmq(request, "43"),
    "qpid": on_qpid,
    "zmq": lambda request: f"zmq://{request.getfixturevalue('tmp_path')}/run",
}


class Items:
    """An endpoint with a generator.

    Attributes:
        yielded: how many items it has yielded.
    """

    def __init__(self) -> None:
        self.yielded = 0

    def items(self, ctxt: Any, count: int, size: int) -> Iterator[str]:
        """Yield numbers as strings of `size` characters."""
        for number in range(count):
            self.yielded += 1
            yield f"{number:0{size}d}"

    def wait_until_it_waits(self) -> None:
        """Return when the generator has yielded nothing for a moment."""
        yielded = -1
        while self.yielded > yielded:
            yielded = self.yielded
            time.sleep(0.05)


@pytest.fixture(params=URLS)
def served(
    request: pytest.FixtureRequest, connect: Connect, tmp_path: pathlib.Path
) -> Iterator[tuple[Items, RPCClient]]:
    """An endpoint that is served on each message system in turn, and a client of it with a transport of its own."""
    url, items = URLS[request.param](request), Items()
    target = Target(topic=f"streams-{tmp_path.name}", server="h1")
    server = get_rpc_server(connect(url), target, [items])
    server.start()
    yield items, get_rpc_client(connect(url), Target(topic=target.topic), timeout=30.0)
    assert server.wait(EVENT_TIMEOUT) == 0


@pytest.mark.parametrize(
    ("count", "size", "most"), [(100_000, 100, 4 << 20), (3_000, 10_240, 5 * STREAM_BYTES)], ids=["small", "large"]
)
def test_memory_stays_flat(served: tuple[Items, RPCClient], count: int, size: int, most: int) -> None:
    """Of a long stream both sides together hold what the window allows, and no more where its reader pauses."""
    items, client = served
    list(client.multicall({}, "items", count=10, size=1))  # Whatever a driver reads at first is not counted.
    items.yielded = 0
    tracemalloc.start()
    try:
        with client.multicall({}, "items", count=count, size=size) as stream:
            for number, item in enumerate(stream):
                assert item == f"{number:0{size}d}"
                if number % (count // 4) == count // 5:
                    items.wait_until_it_waits()
                    ahead = items.yielded - (number + 1)
                    assert ahead <= STREAM_WINDOW
                    assert ahead * size <= STREAM_BYTES + FRAME_BYTES
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert number == count - 1
    assert peak < most  # An item may be there as text, as bytes, in a frame and in the frame's message.
