"""A loop that is written by hand on pyzmq: DEALER and ROUTER, JSON by the standard library; PUB and SUB for fanout.

The server runs its handler on the thread that reads. Each calling thread has a socket of its own. Nothing is
confirmed: what is in a socket when its process ends is lost.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from benchmarks import base
from benchmarks.base import Peer, Service, Work
from benchmarks.payloads import Payload
from benchmarks.workloads import SUBSCRIBERS, TIMEOUT


def _endpoint(topic: str, what: str) -> str:
    return f"ipc://@{topic}-{what}"  # An abstract name: no file is left behind.


def _request(method: str, call_id: str | None, **args: Any) -> bytes:
    request = {"method": method, "args": args} | ({} if call_id is None else {"id": call_id})
    return json.dumps(request).encode()


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        context = zmq.Context()
        calls = context.socket(zmq.ROUTER)
        calls.set_hwm(0)
        calls.bind(_endpoint(self.topic, "calls"))
        ready()
        while True:
            name, data = calls.recv_multipart()
            request = json.loads(data)
            call_id = request.get("id")
            if request["method"] == "items":
                results: Iterable[Payload] = service.items(**request["args"])
            else:
                results = [service.echo(request["args"]["payload"])]
            if call_id is not None:
                for result in results:
                    calls.send_multipart([name, json.dumps({"id": call_id, "result": result}).encode()])


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._context = zmq.Context()
        self._local = threading.local()
        self._ids = itertools.count()

    def _socket(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] | None = getattr(self._local, "socket", None)
        if socket is None:
            socket = self._local.socket = self._context.socket(zmq.DEALER)
            socket.set_hwm(0)
            socket.setsockopt(zmq.RCVTIMEO, int(TIMEOUT * 1000))
            socket.connect(_endpoint(self.topic, "calls"))
        return socket

    def _receive(self, socket: zmq.Socket[bytes], call_id: str) -> Payload:
        reply = json.loads(socket.recv())
        assert reply["id"] == call_id
        result: Payload = reply["result"]
        return result

    def call_once(self, payload: Payload) -> Payload:
        socket, call_id = self._socket(), f"{next(self._ids):032x}"
        socket.send(_request("echo", call_id, payload=payload))
        return self._receive(socket, call_id)

    def cast_once(self, payload: Payload) -> None:
        self._socket().send(_request("echo", None, payload=payload))

    def cast_many(self, work: Work) -> int:
        """One thread: more would only wait for each other."""
        return base.repeat(self.cast_once, work)

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        socket, call_id = self._socket(), f"{next(self._ids):032x}"
        socket.send(_request("items", call_id, count=count, size=size))
        return (self._receive(socket, call_id) for _ in range(count))


class _Subscriber(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        socket = zmq.Context().socket(zmq.SUB)
        socket.set_hwm(0)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.subscribe(b"")
        socket.connect(_endpoint(self.topic, "fanout"))
        ready()
        while True:
            service.echo(json.loads(socket.recv())["args"]["payload"])


class _Publisher(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        # As PUB, but it says who subscribes: all have to be there before the first message.
        self._socket = zmq.Context().socket(zmq.XPUB)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.bind(_endpoint(topic, "fanout"))
        for _ in range(SUBSCRIBERS):
            self._socket.recv()

    def fanout_once(self, payload: Payload) -> None:
        self._socket.send(_request("echo", None, payload=payload))

    def fanout(self, work: Work) -> int:
        """One thread: a socket is not for several."""
        return base.repeat(self.fanout_once, work)


PLAIN = Peer(_Server, _Client)
FANOUT = Peer(_Subscriber, _Publisher)
