"""The conformance suite on RabbitMQ 3.10 and 4.3."""

from __future__ import annotations

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import BusConformance, Conformance
from tests.conformance.documented import Documented
from tests.functional.brokers.rabbitmq import RabbitMQ


class RabbitMQHarness(Harness):
    """One RabbitMQ node."""

    def __init__(self, node: RabbitMQ) -> None:
        self.url = node.url
        self._node = node

    def stop(self) -> None:
        self._node.stop()

    def start(self) -> None:
        self._node.start()

    def kill(self) -> None:
        self._node.sync()
        self._node.kill()

    def cut(self) -> None:
        self._node.eval("[exit(Connection, kill) || Connection <- rabbit_networking:connections()], ok.")

    def pause(self) -> None:
        self._node.pause()

    def resume(self) -> None:
        self._node.resume()

    def partition(self) -> None:
        self._node.eval("rabbit_maintenance:suspend_all_client_listeners(), ok.")
        self.cut()

    def heal(self) -> None:
        self._node.eval("rabbit_maintenance:resume_all_client_listeners(), ok.")

    def leftovers(self) -> set[str]:
        if not self._node.alive():  # a check that stopped it has failed
            self._node.start()
        own = {name for name in self._node.queues() if name.startswith("reply_") or "/!fanout/" in name}
        count = self._node.connections()
        return own | ({f"{count} connections"} if count else set())


class OnRabbitMQ310:
    """The oldest version."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, rabbitmq_310: RabbitMQ) -> Harness:
        return RabbitMQHarness(rabbitmq_310)


class OnRabbitMQ43:
    """The newest version."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, rabbitmq_43: RabbitMQ) -> Harness:
        return RabbitMQHarness(rabbitmq_43)


class TestRabbitMQ310(OnRabbitMQ310, Documented, Conformance):
    """Every check, with processes of its own, on the oldest version."""

    column = "RabbitMQ 3.10"


class TestRabbitMQ43(OnRabbitMQ43, Documented, Conformance):
    """Every check, with processes of its own, on the newest version."""

    column = "RabbitMQ 4.3"


@pytest.mark.soak
class TestRabbitMQ310AsyncioClients(OnRabbitMQ310, BusConformance):
    """Clients for asyncio, servers for threads."""

    clients = "asyncio"


@pytest.mark.soak
class TestRabbitMQ310AsyncioServers(OnRabbitMQ310, BusConformance):
    """Clients for threads, servers for asyncio."""

    servers = "asyncio"


class TestRabbitMQ310Asyncio(OnRabbitMQ310, BusConformance):
    """Clients and servers for asyncio."""

    clients = servers = "asyncio"


@pytest.mark.soak
class TestRabbitMQ43AsyncioClients(OnRabbitMQ43, BusConformance):
    """Clients for asyncio, servers for threads."""

    clients = "asyncio"


@pytest.mark.soak
class TestRabbitMQ43AsyncioServers(OnRabbitMQ43, BusConformance):
    """Clients for threads, servers for asyncio."""

    servers = "asyncio"


@pytest.mark.soak
class TestRabbitMQ43Asyncio(OnRabbitMQ43, BusConformance):
    """Clients and servers for asyncio."""

    clients = servers = "asyncio"
