"""grpcio with asyncio; all else is as with threads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from benchmarks import base
from benchmarks.base import Peer, Service
from benchmarks.payloads import Payload
from benchmarks.peers.grpc_sync import NAME, encode
from benchmarks.peers.sockets import path_of
from benchmarks.workloads import TIMEOUT


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        asyncio.run(self._serve(service, ready))

    async def _serve(self, service: Service, ready: Callable[[], None]) -> None:
        async def echo(payload: Payload, _context: Any) -> Payload:
            return service.echo(payload)

        async def items(asked: list[int], _context: Any) -> AsyncIterator[Payload]:
            for item in service.items(*asked):
                yield item

        handlers = {
            "echo": grpc.unary_unary_rpc_method_handler(echo, json.loads, encode),
            "items": grpc.unary_stream_rpc_method_handler(items, json.loads, encode),
        }
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
        server.add_insecure_port(f"unix:{path_of(self.url, self.topic)}")
        await server.start()
        ready()
        await server.wait_for_termination()


class _Client(base.AsyncClient):
    async def connect(self) -> None:
        channel = grpc.aio.insecure_channel(f"unix:{path_of(self.url, self.topic)}")
        self._echo: Any = channel.unary_unary(f"/{NAME}/echo", encode, json.loads)
        self._items: Any = channel.unary_stream(f"/{NAME}/items", encode, json.loads)

    async def call_async(self, payload: Payload) -> Payload:
        answer: Payload = await self._echo(payload, timeout=TIMEOUT)
        return answer

    async def cast_async(self, payload: Payload) -> None:
        await self._echo(payload, timeout=TIMEOUT)

    def stream_async(self, count: int, size: int) -> AsyncIterator[Payload]:
        items: AsyncIterator[Payload] = self._items([count, size], timeout=TIMEOUT)
        return items


PEER = Peer(_Server, _Client)
