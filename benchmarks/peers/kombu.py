"""kombu's own Producer and Consumer, as its documentation shows them: they cast only.

The server acknowledges each message. Nothing is confirmed, but in kombu-confirmed each message before the next. Queues
and messages are durable, as they are by default: so the broker writes each to disk before it confirms it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from kombu import Connection, Exchange, Queue  # type: ignore[attr-defined]

from benchmarks import base
from benchmarks.base import Broker, Peer, Service, Work
from benchmarks.payloads import Payload


def _connect(url: str, *, confirm: bool = False) -> Any:
    broker = Broker.parse(url)
    return Connection(  # type: ignore[no-untyped-call]
        hostname=broker.host,
        port=broker.port,
        userid=broker.user,
        password=broker.password,
        virtual_host=broker.virtual_host,
        transport_options={"confirm_publish": confirm},
    )


def _queue(topic: str) -> Any:
    exchange = Exchange(topic, "direct", auto_delete=True)  # type: ignore[no-untyped-call]
    return Queue(  # type: ignore[no-untyped-call]
        topic, exchange, routing_key=topic, auto_delete=True
    )


def _all(topic: str) -> Any:
    return Exchange(f"{topic}-fanout", "fanout", auto_delete=True)  # type: ignore[no-untyped-call]


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        def on_message(body: Payload, message: Any) -> None:
            service.echo(body)
            message.ack()

        mine = Queue(  # type: ignore[no-untyped-call]
            f"{self.topic}-{uuid.uuid4().hex}", _all(self.topic), auto_delete=True
        )
        with _connect(self.url) as connection:
            consumer = connection.Consumer([_queue(self.topic), mine], callbacks=[on_message], accept=["json"])
            consumer.qos(prefetch_count=64)
            with consumer:
                ready()
                while True:
                    connection.drain_events()


class _Client(base.Client):
    confirm = False

    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._queue = _queue(topic)
        self._all = _all(topic)
        self._producer = _connect(url, confirm=self.confirm).Producer(serializer="json")

    def cast_once(self, payload: Payload) -> None:
        self._producer.publish(payload, exchange=self._queue.exchange, routing_key=self._queue.routing_key)

    def fanout_once(self, payload: Payload) -> None:
        self._producer.publish(payload, exchange=self._all)

    def cast_many(self, work: Work) -> int:
        """One thread: a connection of kombu's is not for several."""
        return base.repeat(self.cast_once, work)

    def fanout(self, work: Work) -> int:
        """Likewise."""
        return base.repeat(self.fanout_once, work)


class _ConfirmedClient(_Client):
    confirm = True


PLAIN = Peer(_Server, _Client)
CONFIRMED = Peer(_Server, _ConfirmedClient)
