"""A loop that is written by hand on pyzmq: DEALER and ROUTER, JSON by the standard library; PUB and SUB for fanout.

The server runs its handler on the thread that reads. Each calling thread has a socket of its own. Nothing is confirmed.
"""

import itertools
import json
import threading
from collections.abc import Callable, Iterator

import zmq

from benchmarks import base
from benchmarks.base import Handler, Payload, Peer


def _endpoint(topic: str, what: str) -> str:
    return f"ipc://@{topic}-{what}"  # An abstract name: no file is left behind.


class _Server(base.Server):
    def serve(self, handler: Handler, ready: Callable[[], None]) -> None:
        context = zmq.Context()
        calls = context.socket(zmq.ROUTER)
        calls.set_hwm(0)
        calls.bind(_endpoint(self.topic, "calls"))
        ready()
        while True:
            name, data = calls.recv_multipart()
            request = json.loads(data)
            result = handler(request["args"]["payload"])
            if "id" in request:
                calls.send_multipart([name, json.dumps({"id": request["id"], "result": result}).encode()])


class _Subscriber(base.Server):
    def serve(self, handler: Handler, ready: Callable[[], None]) -> None:
        socket = zmq.Context().socket(zmq.SUB)
        socket.set_hwm(0)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.subscribe(b"")
        socket.connect(_endpoint(self.topic, "fanout"))
        ready()
        while True:
            handler(json.loads(socket.recv())["args"]["payload"])


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
            socket.setsockopt(zmq.RCVTIMEO, int(base.TIMEOUT * 1000))
            socket.connect(_endpoint(self.topic, "calls"))
        return socket

    def call(self, payload: Payload) -> Payload:
        socket, call_id = self._socket(), f"{next(self._ids):032x}"
        socket.send(json.dumps({"method": "echo", "args": {"payload": payload}, "id": call_id}).encode())
        reply = json.loads(socket.recv())
        assert reply["id"] == call_id
        result: Payload = reply["result"]
        return result

    def cast(self, payload: Payload) -> None:
        self._socket().send(json.dumps({"method": "echo", "args": {"payload": payload}}).encode())

    def cast_many(self, numbers: Iterator[int], seconds: float) -> int:
        """One thread: more would only wait for each other."""
        return base.repeat(self.cast, numbers, seconds)


class _Publisher(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        # As PUB, but it says who subscribes: all have to be there before the first message.
        self._socket = zmq.Context().socket(zmq.XPUB)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.bind(_endpoint(topic, "fanout"))
        for _ in range(base.SUBSCRIBERS):
            self._socket.recv()

    def fanout(self, payload: Payload) -> None:
        self._socket.send(json.dumps({"method": "echo", "args": {"payload": payload}}).encode())

    def fanout_many(self, numbers: Iterator[int], seconds: float) -> int:
        """One thread: a socket is not for several."""
        return base.repeat(self.fanout, numbers, seconds)


PLAIN = Peer(_Server, _Client)
FANOUT = Peer(_Subscriber, _Publisher)
