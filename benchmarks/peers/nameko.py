"""nameko: its RPC for calls, and its events for casts (a pool of services) and fanouts (broadcast)."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from benchmarks import base
from benchmarks.base import Broker, Peer, Service, Work
from benchmarks.payloads import Payload
from benchmarks.workloads import THREADS, TIMEOUT


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        # As its command does. It is the server's thread alone that works with green threads: the main thread reads its
        # input, and has made its locks before.
        import eventlet

        eventlet.monkey_patch()
        from nameko.containers import ServiceContainer
        from nameko.events import BROADCAST, SERVICE_POOL, event_handler
        from nameko.rpc import rpc

        topic = self.topic

        class Echo:
            name = topic

            @rpc  # type: ignore[untyped-decorator]
            def echo(self, payload: Payload) -> Payload:
                return service.echo(payload)

            @event_handler(f"{topic}-client", "one", handler_type=SERVICE_POOL)  # type: ignore[untyped-decorator]
            def take_one(self, payload: Payload) -> None:
                service.echo(payload)

            @event_handler(  # type: ignore[untyped-decorator]
                f"{topic}-client", "all", handler_type=BROADCAST, reliable_delivery=False
            )
            def take_all(self, payload: Payload) -> None:
                service.echo(payload)

        container = ServiceContainer(Echo, config={"AMQP_URI": Broker.parse(self.url).amqp})
        container.start()
        ready()
        container.wait()


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        from nameko.standalone.events import event_dispatcher

        self._config = {"AMQP_URI": Broker.parse(url).amqp}
        self._dispatch: Any = event_dispatcher(self._config)
        self._proxies: SimpleQueue[Any] = SimpleQueue()
        self._start_proxy()

    def _start_proxy(self) -> None:
        from nameko.standalone.rpc import ServiceRpcProxy

        self._proxies.put(ServiceRpcProxy(self.topic, self._config, timeout=TIMEOUT).start())

    def call_once(self, payload: Payload) -> Payload:
        proxy = self._proxies.get()  # It is for one thread at a time.
        answer: Payload = proxy.echo(payload)
        self._proxies.put(proxy)
        return answer

    def call_conc(self, work: Work) -> int:
        """Calls from many threads, with a proxy for each."""
        while self._proxies.qsize() < THREADS:
            self._start_proxy()
        return super().call_conc(work)

    def cast_once(self, payload: Payload) -> None:
        self._dispatch(f"{self.topic}-client", "one", payload)

    def fanout_once(self, payload: Payload) -> None:
        self._dispatch(f"{self.topic}-client", "all", payload)


PEER = Peer(_Server, _Client)
