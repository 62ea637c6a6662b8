"""Clients that end while the server's asynchronous methods wait for something else."""

from __future__ import annotations

import asyncio
import pathlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest

import msgbus
from msgbus import aio
from msgbus.conformance.waiting import until
from tests.functional.services import Connect, serving
from tests.support import new_conf

SAID = "the server has said that it runs the call and the stream"
CLIENT = """
import sys
import msgbus
from oslo_config import cfg

transport = msgbus.get_rpc_transport(cfg.ConfigOpts(), sys.argv[1])
client = msgbus.get_rpc_client(transport, msgbus.Target(topic="news"), timeout=300)
for item in client.multicall({}, "news"):
    print(item, flush=True)
"""


class News:
    """An endpoint that has nothing to say for a long time; its generator after it has yielded once."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.cancelled = threading.Event()

    async def news(self, ctxt: object) -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.sleep(1000)
        finally:
            self.closed.set()

    async def next(self, ctxt: object) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            self.cancelled.set()


@pytest.fixture(params=["zmq", "rabbitmq_310"])
def url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """ZeroMQ, and RabbitMQ."""
    return f"zmq://{tmp_path}" if request.param == "zmq" else str(request.getfixturevalue(request.param).url)


def test_the_generator_of_a_killed_client_is_closed(url: str, connect: Connect) -> None:
    """Though it does not yield: it is interrupted where it waits, when its client has been silent for 15 seconds."""
    news = News()
    with serving(connect(url), "news", news):
        with subprocess.Popen([sys.executable, "-c", CLIENT, url], stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"first\n"
            assert not news.closed.is_set()
            client.kill()
        assert news.closed.wait(60)


def test_a_transport_that_is_closed_cancels_what_runs_for_it(url: str, connect: Connect) -> None:
    """A service that is stopped leaves no work on the servers: its calls are cancelled, and its generators closed."""

    async def call_and_close() -> None:
        transport = aio.get_rpc_transport(new_conf(), url)
        client = aio.get_rpc_client(transport, msgbus.Target(topic="news"), timeout=300)
        call = asyncio.create_task(client.call({}, "next"))
        stream = client.multicall({}, "news")
        assert await anext(stream) == "first"
        item = asyncio.create_task(anext(stream))
        await asyncio.to_thread(until, lambda: sum(bool(one.servers) for one in transport.router.waiting()) == 2, SAID)
        await transport.aclose()
        with pytest.raises(msgbus.CallCancelled):
            await call
        with pytest.raises(msgbus.CallCancelled):
            await item

    news = News()
    with serving(connect(url), "news", news):
        asyncio.run(asyncio.wait_for(call_and_close(), 60))
        assert news.cancelled.wait(60)
        assert news.closed.wait(10)
