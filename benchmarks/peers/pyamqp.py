"""A loop that is written by hand on py-amqp: a private reply queue, and JSON by the standard library.

The server runs its handler on the thread that reads. Nothing is acknowledged or confirmed, but in three rows:
pyamqp-confirmed and pyamqp-durable wait for the confirmation of each message before the next, pyamqp-pipelined has many
wait for theirs. The queue and its messages are in the broker's memory only, but in pyamqp-durable, where the broker
writes each to disk before it confirms it. Concurrent callers are threads, which share a connection under a lock; in
pyamqp-windowed they are one thread with as many requests under way.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import amqp

from benchmarks import base
from benchmarks.base import Broker, Peer, Service, Work
from benchmarks.payloads import Payload, check, window
from benchmarks.peers.envelope import reply, request, unwrap, wrap
from benchmarks.workloads import TIMEOUT


def _connect(url: str, *, confirm: bool = False) -> Any:
    broker = Broker.parse(url)
    connection = amqp.Connection(
        f"{broker.host}:{broker.port}",
        userid=broker.user,
        password=broker.password,
        virtual_host=broker.virtual_host,
        confirm_publish=confirm,
        heartbeat=0,
    )
    # With the capability connection.blocked, py-amqp would look for events before each publish: slower, and not
    # possible beside a thread that reads.
    connection.negotiate_capabilities = {"consumer_cancel_notify": True, "authentication_failure_close": True}
    connection.connect()
    return connection


class _Server(base.Server):
    ack = False
    durable = False

    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        connection = _connect(self.url)
        channel = connection.channel()
        channel.queue_declare(self.topic, durable=self.durable, auto_delete=True)
        if self.ack:
            channel.basic_qos(0, 64, False)

        def answer(call_id: str, inbox: str, result: Payload) -> None:
            body = wrap(reply(call_id, result))
            message = amqp.Message(body, content_type="application/json", correlation_id=call_id)
            channel.basic_publish(message, routing_key=inbox)

        def run(message: Any) -> None:
            asked = unwrap(message.body)
            call_id, inbox = asked["_msg_id"], asked["_reply_q"]
            if asked["method"] == "items":
                for item in service.items(**asked["args"]):
                    answer(call_id, inbox, item)
            else:
                result = service.echo(asked["args"]["payload"])
                if inbox is not None:
                    answer(call_id, inbox, result)
            if self.ack:
                channel.basic_ack(message.delivery_tag)

        channel.basic_consume(self.topic, no_ack=not self.ack, callback=run)
        ready()
        while True:
            connection.drain_events()


class _Call:
    def __init__(self, call_id: str) -> None:
        self.id = call_id
        self.bodies: deque[str | bytes] = deque()
        self.done = threading.Lock()
        self.done.acquire()


class _Client(base.WindowedClient):
    confirm = False
    delivery_mode = 1

    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._connection = _connect(url, confirm=self.confirm)
        self._channel = self._connection.channel()
        self._inbox = self._channel.queue_declare("", exclusive=True).queue
        self._channel.basic_consume(self._inbox, no_ack=True, callback=self._on_answer)
        self._writing = threading.Lock()
        self._ids = itertools.count()
        self._calls: dict[str, _Call] = {}
        self._reader: threading.Thread | None = None

    def _send(self, inbox: str | None, method: str = "echo", **args: Any) -> _Call:
        call_id = f"{next(self._ids):032x}"
        call = _Call(call_id)
        if inbox is not None:
            self._calls[call_id] = call
        body = wrap(request(call_id, inbox, method, **args))
        properties = {"correlation_id": call_id, "delivery_mode": self.delivery_mode}
        message = amqp.Message(body, content_type="application/json", **properties)
        with self._writing:
            self._channel.basic_publish(message, routing_key=self.topic)
        return call

    def _on_answer(self, message: Any) -> None:
        call = self._calls[message.correlation_id]
        call.bodies.append(message.body)
        if call.done.locked():
            call.done.release()

    def _read(self) -> None:
        while True:
            self._connection.drain_events()

    def _next(self, call: _Call) -> Payload:
        """Wait for an answer on the only thread, which reads itself."""
        while not call.bodies:
            self._connection.drain_events(timeout=TIMEOUT)
        result: Payload = unwrap(call.bodies.popleft())["result"]
        return result

    def begin(self, payload: Payload) -> _Call:
        return self._send(self._inbox, payload=payload)

    def finish(self, call: _Call) -> Payload:
        result = self._next(call)
        del self._calls[call.id]
        return result

    def cast_once(self, payload: Payload) -> None:
        self._send(None, payload=payload)

    def cast_many(self, work: Work) -> int:
        """One thread: more would only wait for each other."""
        return base.repeat(self.cast_once, work)

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        call = self._send(self._inbox, "items", count=count, size=size)
        for _ in range(count):
            yield self._next(call)
        del self._calls[call.id]


class _ThreadsClient(_Client):
    def call_conc(self, work: Work) -> int:
        """Threads that share the connection under a lock, and one that reads."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()

        def once(payload: Payload) -> None:
            call = self.begin(payload)
            if not call.done.acquire(timeout=TIMEOUT):
                raise TimeoutError("no answer")
            del self._calls[call.id]
            check(unwrap(call.bodies.popleft())["result"], payload)

        return base.in_threads(once, work)


class _ConfirmedServer(_Server):
    ack = True


class _ConfirmedClient(_Client):
    confirm = True


class _DurableServer(_ConfirmedServer):
    durable = True


class _DurableClient(_ConfirmedClient):
    delivery_mode = 2


class _PipelinedClient(_Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._on_confirm)
        self._sent = self._confirmed = 0

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        # The broker confirms in order, but for a message that no queue takes; and here there is one queue.
        self._confirmed = max(self._confirmed, tag)

    def cast_many(self, work: Work) -> int:
        """Many casts wait for their confirmation at a time, and all are confirmed at the end."""
        count, most = 0, window(work.size)
        for payload in work.payloads():
            self.cast_once(payload)
            self._sent += 1
            count += 1
            if self._sent - self._confirmed >= most:
                self._drain(most // 2)
        self._drain(0)
        return count

    def _drain(self, left: int) -> None:
        while self._sent - self._confirmed > left:
            self._connection.drain_events(timeout=TIMEOUT)


PLAIN = Peer(_Server, _ThreadsClient)
WINDOWED = Peer(_Server, _Client)
CONFIRMED = Peer(_ConfirmedServer, _ConfirmedClient)
DURABLE = Peer(_DurableServer, _DurableClient)
PIPELINED = Peer(_ConfirmedServer, _PipelinedClient)
