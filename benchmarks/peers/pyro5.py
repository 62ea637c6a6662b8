"""Pyro5: a daemon at a Unix socket, a proxy for each calling thread; casts are its oneway methods.

A cast is not confirmed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import Pyro5.api

from benchmarks import base
from benchmarks.base import Peer, Service, Work
from benchmarks.payloads import Payload
from benchmarks.peers.sockets import path_of
from benchmarks.workloads import THREADS

Pyro5.config.THREADPOOL_SIZE = 2 * THREADS  # its default has room for just that many proxies


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        @Pyro5.api.expose
        class Echo:
            def echo(self, payload: Payload) -> Payload:
                return service.echo(payload)

            @Pyro5.api.oneway  # type: ignore[untyped-decorator]
            def take(self, payload: Payload) -> None:
                service.echo(payload)

            def items(self, count: int, size: int) -> Iterator[Payload]:
                yield from service.items(count, size)

        daemon = Pyro5.api.Daemon(unixsocket=path_of(self.url, self.topic))
        daemon.register(Echo(), "echo")
        ready()
        daemon.requestLoop()


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._local = threading.local()

    def _proxy(self) -> Any:
        proxy = getattr(self._local, "proxy", None)
        if proxy is None:
            proxy = self._local.proxy = Pyro5.api.Proxy(f"PYRO:echo@./u:{path_of(self.url, self.topic)}")
        return proxy

    def call_once(self, payload: Payload) -> Payload:
        answer: Payload = self._proxy().echo(payload)
        return answer

    def cast_once(self, payload: Payload) -> None:
        self._proxy().take(payload)

    def cast_many(self, work: Work) -> int:
        """One thread: more would only wait for each other."""
        return base.repeat(self.cast_once, work)

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        items: Iterable[Payload] = self._proxy().items(count, size)
        return items


PEER = Peer(_Server, _Client)
