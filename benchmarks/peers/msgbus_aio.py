"""msgbus.aio, on both sides, with the driver of the URL and the defaults of all options."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from benchmarks import base
from benchmarks.base import Peer, Service, Work
from benchmarks.payloads import Payload
from benchmarks.peers.msgbus import configure, server_target
from benchmarks.workloads import TIMEOUT
from msgbus import Target, aio


class Endpoint:
    """What clients call."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def echo(self, _ctxt: dict[str, Any], payload: Payload) -> Payload:
        """Give back what came."""
        return self._service.echo(payload)

    async def items(self, _ctxt: dict[str, Any], count: int, size: int) -> AsyncIterator[Payload]:
        """Stream so many items."""
        for item in self._service.items(count, size):
            yield item


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        asyncio.run(self._serve(service, ready))

    async def _serve(self, service: Service, ready: Callable[[], None]) -> None:
        async with aio.get_rpc_transport(*configure(self.url)) as transport:
            server = aio.get_rpc_server(transport, server_target(self.topic), [Endpoint(service)])
            await server.start(TIMEOUT)
            ready()
            await asyncio.Event().wait()


class _Client(base.AsyncClient):
    async def connect(self) -> None:
        self._transport = await aio.get_rpc_transport(*configure(self.url)).__aenter__()
        self._client = aio.get_rpc_client(self._transport, Target(topic=self.topic), timeout=TIMEOUT)

    async def call_async(self, payload: Payload) -> Payload:
        answer: Payload = await self._client.call({}, "echo", payload=payload)
        return answer

    async def cast_async(self, payload: Payload) -> None:
        await self._client.cast({}, "echo", payload=payload)

    def cast_many(self, work: Work) -> int:
        """By the verb that sends many: they are confirmed together."""
        requests = (("echo", {"payload": payload}) for payload in work.payloads())
        return self._runner.run(self._client.cast_many({}, requests))

    async def fanout_async(self, payload: Payload) -> None:
        await self._client.fanout_cast({}, "echo", payload=payload)

    def stream_async(self, count: int, size: int) -> AsyncIterator[Payload]:
        return self._client.multicall({}, "items", count=count, size=size)


PEER = Peer(_Server, _Client)
TOGETHER = Peer(_Server, _Client, together=True)
