"""A loop that is written by hand on qpid-proton's own event loop, and JSON by the standard library.

Every message is settled: what a side receives it accepts, and casts are counted as sent when the broker has accepted
them: in cast each before the next, in cast_many many wait for that. Each process has one connection and one
thread, as proton's event loop is for one. The queue is in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from proton import Message
from proton.handlers import MessagingHandler
from proton.reactor import Container
from proton.utils import BlockingConnection

from benchmarks import base
from benchmarks.base import Broker, Peer, Service, Work
from benchmarks.payloads import Payload, window
from benchmarks.peers.envelope import reply, request, unwrap, wrap
from benchmarks.workloads import THREADS, TIMEOUT


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
        reply_to = answers.link.remote_source.address
        command = Message(body, properties=properties, reply_to=reply_to, correlation_id="1")
        connection.create_sender("$management").send(command)
        assert answers.receive().properties["statusCode"] == 201
    finally:
        connection.close()


class _ServerLoop(MessagingHandler):
    def __init__(self, url: str, topic: str, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(prefetch=64)
        self._url = url
        self._topic = topic
        self._service = service
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
        asked = unwrap(message.body)
        result = self._service.echo(asked["args"]["payload"])
        if message.reply_to is not None:
            call_id = asked["_msg_id"]
            answer = Message(wrap(reply(call_id, result)), address=message.reply_to, correlation_id=call_id)
            self._replies.send(answer)


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        _declare(self.url, self.topic)
        Container(_ServerLoop(self.url, self.topic, service, ready)).run()


class _ClientLoop(MessagingHandler):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(prefetch=THREADS)
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


class _Client(base.WindowedClient):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._loop = _ClientLoop(url, topic)
        self._container: Any = Container(self._loop)
        self._container.timeout = TIMEOUT
        self._container.start()
        self._ids = itertools.count()
        self._run_until(lambda: self._loop.inbox is not None and self._loop.sender.credit > 0)

    def _run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if not self._container.process():
                raise ConnectionError("the connection has ended")

    def _send(self, payload: Payload, inbox: str | None) -> str:
        call_id = f"{next(self._ids):032x}"
        self._loop.unsettled += 1
        body = wrap(request(call_id, inbox, payload=payload))
        self._loop.sender.send(Message(body, reply_to=inbox, correlation_id=call_id))
        return call_id

    def begin(self, payload: Payload) -> str:
        return self._send(payload, self._loop.inbox)

    def finish(self, call: str) -> Payload:
        self._run_until(lambda: call in self._loop.answers)
        result: Payload = unwrap(self._loop.answers.pop(call))["result"]
        return result

    def cast_once(self, payload: Payload) -> None:
        self._send(payload, None)
        self._run_until(lambda: not self._loop.unsettled and self._loop.sender.credit > 0)

    def cast_many(self, work: Work) -> int:
        """One thread, with many casts on their way; all are accepted at the end."""
        count, most = 0, window(work.size)
        for payload in work.payloads():
            self._send(payload, None)
            count += 1
            if self._loop.unsettled >= most or not self._loop.sender.credit:
                self._run_until(lambda: self._loop.unsettled <= most // 2 and self._loop.sender.credit > 0)
        self._run_until(lambda: not self._loop.unsettled)
        return count


PEER = Peer(_Server, _Client)
