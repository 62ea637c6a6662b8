"""A made-up library for tests of the benchmarks: lines of JSON over a Unix socket. It can misbehave as its URL says."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from benchmarks import base
from benchmarks.base import Peer, Service
from benchmarks.payloads import Payload
from benchmarks.peers.sockets import path_of
from benchmarks.workloads import TIMEOUT


def fault(url: str) -> str:
    """What goes wrong: the query of the URL."""
    return urlsplit(url).query


class Listener(socketserver.ThreadingUnixStreamServer):
    """Many may connect at the same time."""

    request_queue_size = 100


class Server(base.Server):
    """Serves each connection in a thread."""

    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        wrong = fault(self.url)
        if wrong == "no-start":
            raise OSError("the made-up server cannot start")

        class Handler(socketserver.StreamRequestHandler):
            def answer(self, value: Payload) -> None:
                self.wfile.write(json.dumps(value).encode() + b"\n")

            def handle(self) -> None:
                for line in self.rfile:
                    method, value = json.loads(line)
                    if method == "items":
                        for item in service.items(*value):
                            self.answer(item)
                        continue
                    if wrong == "dies":
                        print("Error: the made-up server dies")
                        os._exit(3)
                    if wrong == "doubles":
                        service.echo(value)
                    result = service.echo(value)
                    if wrong == "answers-wrong":
                        result = result | {"state": "deleted"}
                    if method == "call":
                        self.answer(result)

        # A fanout goes to the sockets of all servers of the topic.
        path = f"{path_of(self.url, self.topic)}-{os.getpid()}-{time.monotonic_ns()}"
        server = Listener(path, Handler)
        ready()
        server.serve_forever()


class Client(base.Client):
    """Has a connection to each server for each thread."""

    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        path = pathlib.Path(path_of(url, topic))
        self._paths = sorted(path.parent.glob(f"{path.name}-*"))
        self._local = threading.local()
        print("what a library prints is no answer")

    def _sockets(self) -> list[socket.socket]:
        sockets: list[socket.socket] | None = getattr(self._local, "sockets", None)
        if sockets is None:
            sockets = self._local.sockets = []
            self._local.files = []
            for path in self._paths:
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(TIMEOUT)
                connection.connect(str(path))
                sockets.append(connection)
                self._local.files.append(connection.makefile("rb"))
        return sockets

    def _send(self, connection: socket.socket, method: str, value: object) -> None:
        connection.sendall(json.dumps([method, value]).encode() + b"\n")

    def _receive(self) -> Payload:
        answer: Payload = json.loads(self._local.files[0].readline())
        return answer

    def call_once(self, payload: Payload) -> Payload:
        self._send(self._sockets()[0], "call", payload)
        return self._receive()

    def cast_once(self, payload: Payload) -> None:
        self._send(self._sockets()[0], "cast", payload)

    def fanout_once(self, payload: Payload) -> None:
        for connection in self._sockets():
            self._send(connection, "cast", payload)

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        self._send(self._sockets()[0], "items", [count, size])
        return (self._receive() for _ in range(count))


APART = Peer(Server, Client)
TOGETHER = Peer(Server, Client, together=True)
