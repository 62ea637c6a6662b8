"""aio-pika: its pattern RPC, with JSON in place of pickle, for calls; its exchanges, with confirms, for the rest.

Messages are in the broker's memory only, as they are by default.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aio_pika
from aio_pika.patterns.rpc import JsonRPC

from benchmarks import base
from benchmarks.base import Broker, Peer, Service
from benchmarks.payloads import Payload


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        asyncio.run(self._serve(service, ready))

    async def _serve(self, service: Service, ready: Callable[[], None]) -> None:
        connection: Any = await aio_pika.connect(Broker.parse(self.url).amqp)
        channel = await connection.channel()
        rpc: Any = await JsonRPC.create(channel)

        async def echo(payload: Payload) -> Payload:
            return service.echo(payload)

        await rpc.register(self.topic, echo, auto_delete=True)
        casts = await connection.channel()
        await casts.set_qos(prefetch_count=64)

        async def take(message: Any) -> None:
            async with message.process():
                service.echo(json.loads(message.body))

        one = await casts.declare_queue(f"{self.topic}-casts", auto_delete=True)
        everyone = await casts.declare_exchange(f"{self.topic}-fanout", "fanout", auto_delete=True)
        mine = await casts.declare_queue(exclusive=True)
        await mine.bind(everyone)
        for queue in (one, mine):
            await queue.consume(take)
        ready()
        await asyncio.Event().wait()


class _Client(base.AsyncClient):
    async def connect(self) -> None:
        self._connection: Any = await aio_pika.connect(Broker.parse(self.url).amqp)
        channel = await self._connection.channel()
        self._rpc: Any = await JsonRPC.create(channel)
        self._one = channel.default_exchange
        self._all = await channel.declare_exchange(f"{self.topic}-fanout", "fanout", auto_delete=True)

    async def call_async(self, payload: Payload) -> Payload:
        answer: Payload = await self._rpc.call(self.topic, kwargs={"payload": payload})
        return answer

    def _message(self, payload: Payload) -> Any:
        return aio_pika.Message(json.dumps(payload).encode(), content_type="application/json")

    async def cast_async(self, payload: Payload) -> None:
        await self._one.publish(self._message(payload), f"{self.topic}-casts")

    async def fanout_async(self, payload: Payload) -> None:
        await self._all.publish(self._message(payload), "")


PEER = Peer(_Server, _Client)
