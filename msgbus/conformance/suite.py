"""The suite: all checks in one class, or in one for each level."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import ClassVar

import pytest

from msgbus.conformance.bus import Bus
from msgbus.conformance.census import Census
from msgbus.conformance.check import Findings, Level, about, check
from msgbus.conformance.checks import BUS, DRIVER
from msgbus.conformance.harness import Harness, World, Worlds
from msgbus.conformance.processes import prepare


class _Suite:
    """What all levels share: the fixtures.

    Attributes:
        clients: which clients the checks of the whole bus use: ``"threading"`` or ``"asyncio"``.
        servers: which servers they use, likewise.
    """

    clients: ClassVar[World] = "threading"
    servers: ClassVar[World] = "threading"

    @pytest.fixture(scope="class")
    @classmethod
    def worlds(cls) -> Worlds:
        """Which clients and servers the checks use."""
        return Worlds(cls.clients, cls.servers)

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Harness:
        """The driver's harness."""
        raise NotImplementedError("give the class a fixture 'harness', with scope='class'")

    @pytest.fixture(scope="class")
    @classmethod
    def findings(cls, harness: Harness) -> Findings:
        """What the checks have found on this harness."""
        if harness.processes:
            prepare()  # before the first census: that process stays until the end
        return Findings()

    @pytest.fixture
    def bus(
        self,
        harness: Harness,
        worlds: Worlds,
        findings: Findings,
        tmp_path: pathlib.Path,
        request: pytest.FixtureRequest,
    ) -> Iterator[Bus]:
        """The message system, and everything that a check opens on it. What is left of it afterwards is noted."""
        before = Census(harness)
        bus = Bus(harness, tmp_path, findings, worlds)
        try:
            yield bus
        finally:
            bus.close()
        if left := before.compare(broker=not bus.killed, patient=not findings.left):
            findings.left[about(request.function)] = ", ".join(left)


def _is_clean(bus: Bus, level: Level) -> None:
    left = [f"{check.name}: {what}" for check, what in bus.findings.left.items() if check.level == level]
    assert not left, "left behind by " + "; ".join(left)


# pytest runs the checks of the last base class first, and those of the class itself last.
class DriverConformance(*reversed(DRIVER), _Suite):  # type: ignore[misc]  # the classes are listed in one place
    """The checks of the bare driver."""

    @check("driver", since="0.1")
    def test_a_driver_leaves_nothing_behind(self, bus: Bus) -> None:
        """After all is closed, no thread, file descriptor, connection, inbox or fanout queue is left."""
        _is_clean(bus, "driver")


class BusConformance(*reversed(BUS), _Suite):  # type: ignore[misc]
    """The checks of the whole bus."""

    @check("bus", since="0.1", builds_on=("test_a_driver_leaves_nothing_behind",))
    def test_clients_and_servers_leave_nothing_behind(self, bus: Bus) -> None:
        """After all is closed, no thread, file descriptor, connection, inbox or fanout queue is left."""
        _is_clean(bus, "bus")


class Conformance(BusConformance, DriverConformance):
    """All checks. Subclass it in a test file, name the subclass ``Test...``, and give it a class-scoped `harness`."""
