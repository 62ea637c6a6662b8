"""The conformance suite on the driver `fake`."""

from __future__ import annotations

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.fake import FakeHarness
from msgbus.conformance.suite import BusConformance, Conformance
from tests.conformance.documented import Documented


class OnFake:
    """The message system in memory."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Harness:
        return FakeHarness()


class TestFake(OnFake, Documented, Conformance):
    """Every check, in this process."""

    column = "fake"


class TestFakeAsyncioClients(OnFake, BusConformance):
    """Clients for asyncio, servers for threads."""

    clients = "asyncio"


@pytest.mark.soak
class TestFakeAsyncioServers(OnFake, BusConformance):
    """Clients for threads, servers for asyncio."""

    servers = "asyncio"


@pytest.mark.soak
class TestFakeAsyncio(OnFake, BusConformance):
    """Clients and servers for asyncio."""

    clients = servers = "asyncio"
