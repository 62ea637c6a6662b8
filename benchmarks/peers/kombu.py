"""kombu's own Producer and Consumer, as its documentation shows them. It casts only."""

from collections.abc import Callable, Iterator
from typing import Any

from kombu import Connection, Exchange, Queue  # type: ignore[attr-defined]

from benchmarks import base
from benchmarks.base import Broker, Handler, Payload, Peer


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


class _Server(base.Server):
    def serve(self, handler: Handler, ready: Callable[[], None]) -> None:
        def on_message(body: Payload, message: Any) -> None:
            handler(body)
            message.ack()

        with _connect(self.url) as connection:
            consumer = connection.Consumer(_queue(self.topic), callbacks=[on_message], accept=["json"])
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
        self._producer = _connect(url, confirm=self.confirm).Producer(serializer="json")

    def cast(self, payload: Payload) -> None:
        self._producer.publish(payload, exchange=self._queue.exchange, routing_key=self._queue.routing_key)

    def cast_many(self, numbers: Iterator[int], seconds: float) -> int:
        """One thread: a connection of kombu's is not for several."""
        return base.repeat(self.cast, numbers, seconds)


class _ConfirmedClient(_Client):
    confirm = True


PLAIN = Peer(_Server, _Client)
CONFIRMED = Peer(_Server, _ConfirmedClient)
