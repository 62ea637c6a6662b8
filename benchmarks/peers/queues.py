"""Threads over SimpleQueue: the floor of the message system in memory. Values are passed on as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any

from benchmarks import base
from benchmarks.base import Peer, Service
from benchmarks.payloads import Payload
from benchmarks.workloads import TIMEOUT

_topics: dict[str, list[SimpleQueue[Any]]] = {}


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        inbox: SimpleQueue[Any] = SimpleQueue()
        _topics.setdefault(self.topic, []).append(inbox)
        ready()
        while True:
            what, replies = inbox.get()
            if isinstance(what, tuple):
                for item in service.items(*what):
                    replies.put(item)
                continue
            result = service.echo(what)
            if replies is not None:
                replies.put(result)


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._servers = _topics[topic]
        self._local = threading.local()

    def _replies(self) -> SimpleQueue[Any]:
        replies: SimpleQueue[Any] | None = getattr(self._local, "replies", None)
        if replies is None:
            replies = self._local.replies = SimpleQueue()
        return replies

    def call_once(self, payload: Payload) -> Payload:
        replies = self._replies()
        self._servers[0].put((payload, replies))
        answer: Payload = replies.get(timeout=TIMEOUT)
        return answer

    def cast_once(self, payload: Payload) -> None:
        self._servers[0].put((payload, None))

    def fanout_once(self, payload: Payload) -> None:
        for server in self._servers:
            server.put((payload, None))

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        replies = self._replies()
        self._servers[0].put(((count, size), replies))
        return (replies.get(timeout=TIMEOUT) for _ in range(count))


PEER = Peer(_Server, _Client, together=True)
