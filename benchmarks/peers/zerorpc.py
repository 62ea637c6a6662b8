"""zerorpc: calls and streams of its Client and Server, casts of its Pusher and Puller. Green threads call.

Casts are not confirmed: what is in a socket when its process ends is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import gevent
import zerorpc

from benchmarks import base
from benchmarks.base import Peer, Service, Work
from benchmarks.payloads import Payload, check
from benchmarks.peers.sockets import path_of, wait_for
from benchmarks.workloads import THREADS, TIMEOUT


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        class Echo:
            def echo(self, payload: Payload) -> Payload:
                return service.echo(payload)

            @zerorpc.stream  # type: ignore[untyped-decorator]
            def items(self, count: int, size: int) -> Iterator[Payload]:
                yield from service.items(count, size)

        path = path_of(self.url, self.topic)
        server = zerorpc.Server(Echo())
        server.bind(f"ipc://{path}")
        puller = zerorpc.Puller({"echo": service.echo})
        puller.bind(f"ipc://{path}-casts")
        gevent.spawn(puller.run)
        ready()
        server.run()


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        path = path_of(url, topic)
        wait_for(f"{path}-casts")
        self._client = zerorpc.Client(f"ipc://{path}", timeout=TIMEOUT)
        self._pusher = zerorpc.Pusher()
        self._pusher.connect(f"ipc://{path}-casts")

    def call_once(self, payload: Payload) -> Payload:
        answer: Payload = self._client.echo(payload)
        return answer

    def call_conc(self, work: Work) -> int:
        """Calls from many green threads."""

        def once(payload: Payload) -> None:
            check(self.call_once(payload), payload)

        callers = [gevent.spawn(base.repeat, once, work) for _ in range(THREADS)]
        return sum(caller.get() for caller in callers)

    def cast_once(self, payload: Payload) -> None:
        self._pusher.echo(payload)

    def cast_many(self, work: Work) -> int:
        """One thread: more would only wait for each other."""
        return base.repeat(self.cast_once, work)

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        items: Iterable[Payload] = self._client.items(count, size)
        return items


PEER = Peer(_Server, _Client)
