"""FastStream over RabbitMQ, with its defaults.

Each cast waits for its confirmation. Messages are in the broker's memory only.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue

from benchmarks import base
from benchmarks.base import Broker, Peer, Service
from benchmarks.payloads import Payload
from benchmarks.workloads import TIMEOUT


def _all(topic: str) -> Any:
    return RabbitExchange(f"{topic}-fanout", type=ExchangeType.FANOUT, auto_delete=True)


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        asyncio.run(self._serve(service, ready))

    async def _serve(self, service: Service, ready: Callable[[], None]) -> None:
        broker: Any = RabbitBroker(Broker.parse(self.url).amqp)

        async def echo(payload: dict[str, Any]) -> dict[str, Any]:
            return service.echo(payload)

        mine = RabbitQueue(f"{self.topic}-{uuid.uuid4().hex}", auto_delete=True, durable=False)
        broker.subscriber(RabbitQueue(self.topic, auto_delete=True, durable=False))(echo)
        broker.subscriber(mine, _all(self.topic))(echo)
        async with broker:
            await broker.start()
            ready()
            await asyncio.Event().wait()


class _Client(base.AsyncClient):
    async def connect(self) -> None:
        self._broker: Any = RabbitBroker(Broker.parse(self.url).amqp)
        await self._broker.start()
        self._all = await self._broker.declare_exchange(_all(self.topic))

    async def call_async(self, payload: Payload) -> Payload:
        message = await self._broker.request(payload, self.topic, timeout=TIMEOUT)
        answer: Payload = await message.decode()
        return answer

    async def cast_async(self, payload: Payload) -> None:
        await self._broker.publish(payload, self.topic)

    async def fanout_async(self, payload: Payload) -> None:
        await self._broker.publish(payload, exchange=_all(self.topic))


PEER = Peer(_Server, _Client)
