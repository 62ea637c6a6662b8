"""The conformance suite on Apache Qpid Broker-J, with its queues on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import BusConformance, Conformance
from tests.conformance.documented import Documented
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.qpid import Qpid


class QpidHarness(Harness):
    """One Broker-J behind a proxy, which can keep everybody away from it."""

    def __init__(self, broker: Qpid, proxy: Proxy) -> None:
        self.url = broker.url.replace(f":{broker.port}/", f":{proxy.port}/")
        self._broker = broker
        self._proxy = proxy

    def stop(self) -> None:
        self._broker.stop()

    def start(self) -> None:
        self._broker.start()

    def kill(self) -> None:
        self._broker.kill()

    def cut(self) -> None:
        self._broker.cut()

    def pause(self) -> None:
        self._broker.pause()

    def resume(self) -> None:
        self._broker.resume()

    def partition(self) -> None:
        self._proxy.refuse()
        self._proxy.cut()

    def heal(self) -> None:
        self._proxy.accept()

    def leftovers(self) -> set[str]:
        if not self._broker.alive():  # a check that stopped it has failed
            self._broker.start()
        # What the broker has made for inboxes and fanouts, and for the answers of its management.
        own = {name for name in self._broker.queue_names() if name.startswith(("qpidsub_", "TempQueue"))}
        return own | self._broker.connections()


class OnQpid:
    """A Broker-J behind a proxy."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, qpid_durable: Qpid) -> Iterator[Harness]:
        with contextlib.closing(Proxy(qpid_durable.port)) as proxy:
            yield QpidHarness(qpid_durable, proxy)


class TestQpid(OnQpid, Documented, Conformance):
    """Every check, with processes of its own."""

    column = "qpid"


@pytest.mark.soak
class TestQpidAsyncioClients(OnQpid, BusConformance):
    """Clients for asyncio, servers for threads."""

    clients = "asyncio"


@pytest.mark.soak
class TestQpidAsyncioServers(OnQpid, BusConformance):
    """Clients for threads, servers for asyncio."""

    servers = "asyncio"


@pytest.mark.soak
class TestQpidAsyncio(OnQpid, BusConformance):
    """Clients and servers for asyncio."""

    clients = servers = "asyncio"
