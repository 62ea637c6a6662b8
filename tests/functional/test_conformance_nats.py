"""The conformance suite on NATS, with the driver of examples/msgbus-nats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import BusConformance, Conformance
from tests.conformance.documented import Documented
from tests.functional.brokers.nats import MAX_PAYLOAD, Nats
from tests.functional.brokers.proxy import Proxy


class NatsHarness(Harness):
    """One NATS server behind a proxy, which can cut its connections: the server itself has no command for that."""

    largest = MAX_PAYLOAD - 1024  # the driver keeps a kilobyte for headers

    def __init__(self, server: Nats, proxy: Proxy) -> None:
        self.url = f"nats://127.0.0.1:{proxy.port}/"
        self._server = server
        self._proxy = proxy

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.kill()

    def cut(self) -> None:
        self._proxy.cut()

    def pause(self) -> None:
        self._server.pause()

    def resume(self) -> None:
        self._server.resume()

    def partition(self) -> None:
        self._proxy.refuse()
        self._proxy.cut()

    def heal(self) -> None:
        self._proxy.accept()

    def leftovers(self) -> set[str]:
        if not self._server.alive():  # a check that stopped it has failed
            self._server.start()
        found = {f"consumer {name} of {stream}" for stream, name in self._server.consumers() if ",fanout," in stream}
        found |= {subject for subject in self._server.subscriptions() if subject.startswith("msgbus.inbox.")}
        count = self._server.connections()
        return found | ({f"{count} connections"} if count else set())


class OnNats:
    """A NATS server behind a proxy."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, nats: Nats) -> Iterator[Harness]:
        with contextlib.closing(Proxy(nats.port)) as proxy:
            yield NatsHarness(nats, proxy)


class TestNats(OnNats, Documented, Conformance):
    """Every check, with processes of its own."""

    column = "nats"


@pytest.mark.soak
class TestNatsAsyncioClients(OnNats, BusConformance):
    """Clients for asyncio, servers for threads."""

    clients = "asyncio"


@pytest.mark.soak
class TestNatsAsyncioServers(OnNats, BusConformance):
    """Clients for threads, servers for asyncio."""

    servers = "asyncio"


@pytest.mark.soak
class TestNatsAsyncio(OnNats, BusConformance):
    """Clients and servers for asyncio."""

    clients = servers = "asyncio"
