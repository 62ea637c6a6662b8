"""A loop that is written by hand on py-amqp: a private reply queue, and JSON by the standard library.

The server runs its handler on the thread that reads. Nothing is acknowledged or confirmed, but in the peer `CONFIRMED`.
"""

import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import amqp

from benchmarks import base
from benchmarks.base import Broker, Handler, Payload, Peer, check, make_payload


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


def _wrap(message: dict[str, Any]) -> str:
    """The double envelope that msgbus writes too."""
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)})


def _unwrap(body: str | bytes) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(json.loads(body)["oslo.message"])
    return message


class _Server(base.Server):
    ack = False

    def serve(self, handler: Handler, ready: Callable[[], None]) -> None:
        connection = _connect(self.url)
        channel = connection.channel()
        channel.queue_declare(self.topic, auto_delete=True)
        if self.ack:
            channel.basic_qos(0, 64, False)

        def run(message: Any) -> None:
            request = _unwrap(message.body)
            result = handler(request["args"]["payload"])
            if (reply_to := request.get("_reply_q")) is not None:
                call_id = request["_msg_id"]
                reply = {"result": result, "failure": None, "ending": True, "_msg_id": call_id, "_unique_id": call_id}
                channel.basic_publish(
                    amqp.Message(_wrap(reply), content_type="application/json", correlation_id=call_id),
                    routing_key=reply_to,
                )
            if self.ack:
                channel.basic_ack(message.delivery_tag)

        channel.basic_consume(self.topic, no_ack=not self.ack, callback=run)
        ready()
        while True:
            connection.drain_events()


class _Call:
    def __init__(self) -> None:
        self.body: str | bytes | None = None
        self.done = threading.Lock()
        self.done.acquire()


class _Client(base.Client):
    confirm = False

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

    def _publish(self, call_id: str, request: dict[str, Any]) -> None:
        message = amqp.Message(_wrap(request), content_type="application/json", correlation_id=call_id)
        with self._writing:
            self._channel.basic_publish(message, routing_key=self.topic)

    def _begin(self, payload: Payload) -> _Call:
        call_id = f"{next(self._ids):032x}"
        call = self._calls[call_id] = _Call()
        request = {
            "method": "echo",
            "args": {"payload": payload},
            "_msg_id": call_id,
            "_reply_q": self._inbox,
            "_unique_id": call_id,
            "_timeout": None,
        }
        self._publish(call_id, request)
        return call

    def _on_answer(self, message: Any) -> None:
        call = self._calls.pop(message.correlation_id)
        call.body = message.body
        call.done.release()

    def _read(self) -> None:
        while True:
            self._connection.drain_events()

    def _finish(self, call: _Call) -> Payload:
        """Wait for the answer on the only thread, which reads itself."""
        while call.body is None:
            self._connection.drain_events()
        result: Payload = _unwrap(call.body)["result"]
        return result

    def call(self, payload: Payload) -> Payload:
        return self._finish(self._begin(payload))

    def call_conc(self, numbers: Iterator[int], seconds: float) -> int:
        """Threads that share the connection under a lock, and one that reads."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()

        def once(payload: Payload) -> None:
            call = self._begin(payload)
            if not call.done.acquire(timeout=base.TIMEOUT) or call.body is None:
                raise TimeoutError("no answer")
            check(_unwrap(call.body)["result"], payload)

        return base.in_threads(once, numbers, seconds)

    def cast(self, payload: Payload) -> None:
        call_id = f"{next(self._ids):032x}"
        self._publish(call_id, {"method": "echo", "args": {"payload": payload}, "_unique_id": call_id})

    def cast_many(self, numbers: Iterator[int], seconds: float) -> int:
        """One thread: more would only wait for each other."""
        return base.repeat(self.cast, numbers, seconds)


class _WindowedClient(_Client):
    def call_conc(self, numbers: Iterator[int], seconds: float) -> int:
        """One thread that keeps as many requests outstanding as others have threads."""
        calls: deque[tuple[_Call, Payload]] = deque()

        def begin() -> None:
            payload = make_payload(next(numbers))
            calls.append((self._begin(payload), payload))

        for _ in range(base.THREADS):
            begin()
        count = 0
        end = time.monotonic() + seconds
        while calls:
            call, payload = calls.popleft()  # The server answers in order.
            check(self._finish(call), payload)
            count += 1
            if time.monotonic() < end:
                begin()
        return count


class _ConfirmedServer(_Server):
    ack = True


class _ConfirmedClient(_Client):
    confirm = True


PLAIN = Peer(_Server, _Client)
WINDOWED = Peer(_Server, _WindowedClient)
CONFIRMED = Peer(_ConfirmedServer, _ConfirmedClient)
