"""A loop that is written by hand on qpid-proton's own event loop, and JSON by the standard library.

Every message is settled: what a side receives it accepts, and casts are counted as sent when the broker has accepted
them. Each process has one connection and one thread, as proton's event loop is for one. The queue is in memory.
"""

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from proton import Message
from proton.handlers import MessagingHandler
from proton.reactor import Container
from proton.utils import BlockingConnection

from benchmarks import base
from benchmarks.base import Broker, Handler, Payload, Peer, check, make_payload

WINDOW = 1000
"""Casts that may wait for the broker to accept them."""


def _options(broker: Broker) -> dict[str, Any]:
    return {"user": broker.user, "password": broker.password, "allow_insecure_mechs": True}


def _connect(container: Any, url: str) -> Any:
    broker = Broker.parse(url)
    return container.connect(f"amqp://{broker.host}:{broker.port}", reconnect=False, **_options(broker))


def _declare(url: str, topic: str) -> None:
    """Make the server's queue, over AMQP management. It goes with the server."""
    broker = Broker.parse(url)
    connection: Any = BlockingConnection(f"amqp://{broker.host}:{broker.port}", **_options(broker))
    try:
        answers = connection.create_receiver(None, dynamic=True)
        body = {"name": topic, "qpid-type": "standard", "lifetimePolicy": "DELETE_ON_NO_OUTBOUND_LINKS"}
        properties = {"operation": "CREATE", "type": "org.apache.qpid.Queue"}
        request = Message(body, properties=properties, reply_to=answers.link.remote_source.address, correlation_id="1")
        connection.create_sender("$management").send(request)
        assert answers.receive().properties["statusCode"] == 201
    finally:
        connection.close()


def _wrap(message: dict[str, Any]) -> str:
    """The double envelope that msgbus writes too."""
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(message)})


def _unwrap(body: Any) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(json.loads(body)["oslo.message"])
    return message


class _ServerLoop(MessagingHandler):
    def __init__(self, url: str, topic: str, handler: Handler, ready: Callable[[], None]) -> None:
        super().__init__(prefetch=64)
        self._url = url
        self._topic = topic
        self._handler = handler
        self._ready = ready

    def on_start(self, event: Any) -> None:
        connection = _connect(event.container, self._url)
        event.container.create_receiver(connection, self._topic)
        self._replies: Any = event.container.create_sender(connection, None)

    def on_link_opened(self, event: Any) -> None:
        if event.link.is_receiver:
            self._ready()

    def on_message(self, event: Any) -> None:
        message = event.message
        request = _unwrap(message.body)
        result = self._handler(request["args"]["payload"])
        if message.reply_to is not None:
            call_id = request["_msg_id"]
            reply = {"result": result, "failure": None, "ending": True, "_msg_id": call_id, "_unique_id": call_id}
            self._replies.send(Message(_wrap(reply), address=message.reply_to, correlation_id=call_id))


class _Server(base.Server):
    def serve(self, handler: Handler, ready: Callable[[], None]) -> None:
        _declare(self.url, self.topic)
        Container(_ServerLoop(self.url, self.topic, handler, ready)).run()


class _ClientLoop(MessagingHandler):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(prefetch=base.THREADS)
        self._url = url
        self._topic = topic
        self.inbox: str | None = None
        self.answers: dict[str, str] = {}
        self.unsettled = 0

    def on_start(self, event: Any) -> None:
        connection = _connect(event.container, self._url)
        self.sender: Any = event.container.create_sender(connection, self._topic)
        event.container.create_receiver(connection, None, dynamic=True)

    def on_link_opened(self, event: Any) -> None:
        if event.link.is_receiver:
            self.inbox = event.link.remote_source.address

    def on_message(self, event: Any) -> None:
        self.answers[event.message.correlation_id] = event.message.body

    def on_accepted(self, event: Any) -> None:
        self.unsettled -= 1

    def on_released(self, event: Any) -> None:
        raise ConnectionError(f"the broker did not take a message: {event.delivery.remote_state}")

    on_rejected = on_released


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._loop = _ClientLoop(url, topic)
        self._container: Any = Container(self._loop)
        self._container.timeout = base.TIMEOUT
        self._container.start()
        self._ids = itertools.count()
        self._run_until(lambda: self._loop.inbox is not None and self._loop.sender.credit > 0)

    def _run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if not self._container.process():
                raise ConnectionError("the connection has ended")

    def _begin(self, payload: Payload, inbox: str | None) -> str:
        call_id = f"{next(self._ids):032x}"
        request = {
            "method": "echo",
            "args": {"payload": payload},
            "_msg_id": call_id,
            "_reply_q": inbox,
            "_unique_id": call_id,
            "_timeout": None,
        }
        self._loop.unsettled += 1
        self._loop.sender.send(Message(_wrap(request), reply_to=inbox, correlation_id=call_id))
        return call_id

    def _finish(self, call_id: str) -> Payload:
        self._run_until(lambda: call_id in self._loop.answers)
        result: Payload = _unwrap(self._loop.answers.pop(call_id))["result"]
        return result

    def call(self, payload: Payload) -> Payload:
        return self._finish(self._begin(payload, self._loop.inbox))

    def call_conc(self, numbers: Iterator[int], seconds: float) -> int:
        """One thread that keeps as many requests outstanding as others have threads."""
        calls: deque[tuple[str, Payload]] = deque()

        def begin() -> None:
            payload = make_payload(next(numbers))
            calls.append((self._begin(payload, self._loop.inbox), payload))

        for _ in range(base.THREADS):
            begin()
        count = 0
        end = time.monotonic() + seconds
        while calls:
            call_id, payload = calls.popleft()  # The server answers in order.
            check(self._finish(call_id), payload)
            count += 1
            if time.monotonic() < end:
                begin()
        return count

    def cast(self, payload: Payload) -> None:
        self._begin(payload, None)
        if self._loop.unsettled >= WINDOW or not self._loop.sender.credit:
            self._run_until(lambda: self._loop.unsettled <= WINDOW // 2 and self._loop.sender.credit > 0)

    def cast_many(self, numbers: Iterator[int], seconds: float) -> int:
        """One thread, with many casts on their way."""
        count = base.repeat(self.cast, numbers, seconds)
        self._run_until(lambda: not self._loop.unsettled)
        return count


PEER = Peer(_Server, _Client)
