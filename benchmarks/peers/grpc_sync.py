"""grpcio with threads, at a Unix socket, and JSON in place of protobuf, so that nothing has to be compiled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from benchmarks import base
from benchmarks.base import Peer, Service, Work
from benchmarks.payloads import Payload, window
from benchmarks.peers.sockets import path_of
from benchmarks.workloads import THREADS, TIMEOUT

NAME = "Echo"


def encode(value: Any) -> bytes:
    """A value as it travels."""
    return json.dumps(value).encode()


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        def echo(payload: Payload, _context: Any) -> Payload:
            return service.echo(payload)

        def items(asked: list[int], _context: Any) -> Iterator[Payload]:
            yield from service.items(*asked)

        handlers = {
            "echo": grpc.unary_unary_rpc_method_handler(echo, json.loads, encode),
            "items": grpc.unary_stream_rpc_method_handler(items, json.loads, encode),
        }
        server = grpc.server(ThreadPoolExecutor(THREADS))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
        server.add_insecure_port(f"unix:{path_of(self.url, self.topic)}")
        server.start()
        ready()
        server.wait_for_termination()


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        channel = grpc.insecure_channel(f"unix:{path_of(url, topic)}")
        self._echo: Any = channel.unary_unary(f"/{NAME}/echo", encode, json.loads)
        self._items: Any = channel.unary_stream(f"/{NAME}/items", encode, json.loads)

    def call_once(self, payload: Payload) -> Payload:
        answer: Payload = self._echo(payload, timeout=TIMEOUT)
        return answer

    def cast_many(self, work: Work) -> int:
        """Calls whose answers are taken later: there are no casts."""

        def begin(payload: Payload) -> Any:
            return self._echo.future(payload, timeout=TIMEOUT)

        def finish(call: Any, _payload: Payload) -> None:
            call.result()

        return base.windowed(begin, finish, work, window(work.size))

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        items: Iterable[Payload] = self._items([count, size], timeout=TIMEOUT)
        return items


PEER = Peer(_Server, _Client)
