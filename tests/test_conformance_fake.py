"""The conformance suite on the driver `fake`."""

from __future__ import annotations

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import Conformance
from msgbus.drivers.fake import get_bus


class FakeHarness(Harness):
    """The bus in memory."""

    url = "fake://conformance/"
    processes = False

    def __init__(self) -> None:
        self._bus = get_bus(self.url)
        self._bus._timer.call_later(0, lambda: None)  # Its thread lives as long as the bus, which is this harness's.

    def stop(self) -> None:
        self._bus.stop()

    def start(self) -> None:
        self._bus.start()

    def cut(self) -> None:
        self._bus.cut()

    def leftovers(self) -> set[str]:
        return {str(address) for address in self._bus._queues if address.kind in ("fanout", "inbox")}


class TestFake(Conformance):
    """Every check, in this process."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Harness:
        return FakeHarness()
