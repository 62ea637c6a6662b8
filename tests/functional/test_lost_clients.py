"""Clients whose process is killed while the server's asynchronous generator waits for something else."""

from __future__ import annotations

import asyncio
import pathlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from tests.functional.services import Connect, serving

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
    """An endpoint whose generator yields once, and then nothing for a long time."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def news(self, ctxt: object) -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.sleep(1000)
        finally:
            self.closed.set()


@pytest.mark.parametrize("system", ["zmq", "rabbitmq_310"])
def test_the_generator_of_a_killed_client_is_closed(
    system: str, request: pytest.FixtureRequest, connect: Connect, tmp_path: pathlib.Path
) -> None:
    """Though it does not yield: it is interrupted where it waits, when its client has been silent for 15 seconds."""
    url = f"zmq://{tmp_path}" if system == "zmq" else request.getfixturevalue(system).url
    news = News()
    with serving(connect(url), "news", news):
        with subprocess.Popen([sys.executable, "-c", CLIENT, url], stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"first\n"
            assert not news.closed.is_set()
            client.kill()
        assert news.closed.wait(60)
