"""rpyc: a connection for each calling thread, at a Unix socket, to its server of threads.

It passes dicts by reference, and each look into one is a message: so payloads travel as text, in JSON.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import rpyc
from rpyc.utils.factory import unix_connect
from rpyc.utils.server import ThreadedServer

from benchmarks import base
from benchmarks.base import Peer, Service, Work
from benchmarks.payloads import Payload, window
from benchmarks.peers.sockets import path_of
from benchmarks.workloads import TIMEOUT


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        class Echo(rpyc.Service):  # type: ignore[misc]
            def exposed_echo(self, text: str) -> str:
                return json.dumps(service.echo(json.loads(text)))

            def exposed_items(self, count: int, size: int) -> Iterator[str]:
                return (json.dumps(item) for item in service.items(count, size))

        server = ThreadedServer(Echo, socket_path=path_of(self.url, self.topic))
        ready()
        server.start()


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._local = threading.local()

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = unix_connect(path_of(self.url, self.topic), config={"sync_request_timeout": TIMEOUT})
            self._local.connection = connection
        return connection

    def call_once(self, payload: Payload) -> Payload:
        answer: Payload = json.loads(self._connection().root.echo(json.dumps(payload)))
        return answer

    def cast_many(self, work: Work) -> int:
        """Asynchronous calls whose answers are taken later: there are no casts."""
        echo = rpyc.async_(self._connection().root.echo)

        def begin(payload: Payload) -> Any:
            return echo(json.dumps(payload))

        def finish(call: Any, _payload: Payload) -> None:
            call.wait()

        return base.windowed(begin, finish, work, window(work.size) // 10 + 1)

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        return (json.loads(text) for text in self._connection().root.items(count, size))


PEER = Peer(_Server, _Client)
