"""What msgbus promises holds while things fail: each scenario of `tests.faults`, on each message system."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Collection, Iterator
from typing import ClassVar

import msgspec
import pytest

from tests.faults.figures import PROPERTY, count, judge
from tests.faults.proofs import Record
from tests.faults.run import Run
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.systems import (
    Brokered,
    Clustered,
    Fake,
    LocalZmq,
    System,
    nats_url,
    qpid_memory_url,
    qpid_url,
    rabbit_url,
)
from tests.functional.brokers.cluster import Cluster
from tests.functional.brokers.nats import Nats
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.support import new_url

GOES_ON = 15.0
"""Seconds after a fault in which calls go on; asserted where the machine has nothing else to do."""
WIDTH = 118
"""Columns of the line that shows how far a scenario is."""
SHOWN = 5
"""Messages that are shown for each promise that was broken."""
ALONE = os.environ.get("MSGBUS_FAULTS") == "all"


class Faults:
    """All scenarios, for a subclass that has a fixture `system`.

    Attributes:
        can: what the system can, see `System.can`; what a scenario needs beyond that it is not run for.
        ordinary: what a scenario has to need to be part of the ordinary run on this system; None means nothing.
    """

    can: ClassVar[Collection[str]]
    ordinary: ClassVar[str | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Choose the scenarios, and mark those that the ordinary run leaves out."""
        found = [
            pytest.param(it, id=it.name, marks=() if self._is_ordinary(it) else pytest.mark.faults)
            for it in SCENARIOS
            if set(it.needs) <= set(self.can)
        ]
        metafunc.parametrize("scenario", found)

    def _is_ordinary(self, scenario: Scenario) -> bool:
        return scenario.short and (self.ordinary is None or self.ordinary in scenario.needs)

    @pytest.fixture
    @classmethod
    def progress(cls, pytestconfig: pytest.Config) -> Iterator[Callable[[str], None]]:
        """Shows a line to the person who runs the tests, in place of the one before."""
        manager = pytestconfig.pluginmanager
        capture, terminal = manager.get_plugin("capturemanager"), manager.get_plugin("terminalreporter")
        if capture is None or terminal is None or not terminal.isatty:
            yield lambda line: None
            return
        began = time.monotonic()

        def show(line: str) -> None:
            text = f"  {time.monotonic() - began:6.1f} s  {line}" if line else ""
            with capture.global_and_fixture_disabled():
                print(f"\r{text[:WIDTH]:{WIDTH}}", end="" if line else "\r", flush=True)

        yield show
        show("")

    @pytest.mark.timeout(600)
    def test_promises_hold(
        self,
        scenario: Scenario,
        system: System,
        tmp_path: pathlib.Path,
        progress: Callable[[str], None],
        record_property: Callable[[str, object], None],
    ) -> None:
        """Nothing is lost, run twice, late or hung, and every error is one of ours."""
        system.restore()
        with Run(system, tmp_path, progress) as run:
            scenario.run(run)
            record = Record(run.finish())
            broken = judge(record)
            figures = count(record, system.name, scenario.name, scenario.title, broken)
            record_property(PROPERTY, msgspec.json.encode(figures).decode())
            assert figures.faults, "nothing was broken"
            if broken:
                pytest.fail(report(broken), pytrace=False)
            if ALONE and figures.goes_on is not None:
                assert figures.goes_on < GOES_ON, f"calls went on after {figures.goes_on} s only"


def report(broken: dict[str, list[str]]) -> str:
    """What is wrong, for a person to read."""
    found = []
    for name, lines in broken.items():
        found += [f"{len(lines)} {name}:", *(f"  {line}" for line in lines[:SHOWN])]
    return "\n".join(found)


RABBITMQ = {"processes", "broker", "cut", "stall", "store", "exchange"}
CLUSTER = {"processes", "cluster", "cut", "stall", "store"}


@pytest.mark.faults
class TestRabbitMQ310(Faults):
    """The oldest version. The ordinary run has the newest one only."""

    can = RABBITMQ

    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, rabbitmq_310: RabbitMQ) -> System:
        return rabbit(rabbitmq_310)


class TestRabbitMQ43(Faults):
    """The newest version."""

    can = RABBITMQ

    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, rabbitmq_43: RabbitMQ) -> System:
        return rabbit(rabbitmq_43)


def rabbit(node: RabbitMQ) -> System:
    """One RabbitMQ node."""

    def delete_exchange() -> None:
        node.eval('rabbit_exchange:delete({resource, <<"/">>, exchange, <<"msgbus">>}, false, <<"tests">>), ok.')

    return Brokered(f"RabbitMQ {node.version}", [node], RABBITMQ, rabbit_url, delete_exchange)


@pytest.mark.faults
class TestCluster310(Faults):
    """Three nodes of the oldest version, with quorum queues. The ordinary run has a cluster of the newest one only."""

    can = CLUSTER

    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, rabbitmq_cluster_310: Cluster) -> System:
        return Clustered(rabbitmq_cluster_310, cls.can)


class TestCluster43(Faults):
    """Three nodes of the newest version, with quorum queues."""

    can = CLUSTER
    ordinary = "cluster"

    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, rabbitmq_cluster_43: Cluster) -> System:
        return Clustered(rabbitmq_cluster_43, cls.can)


class TestQpidInMemory(Faults):
    """Broker-J that keeps everything in memory: what it has when it is killed is lost."""

    can: ClassVar[Collection[str]] = {"processes", "broker", "cut", "stall", "store", "volatile"}
    ordinary = "broker"

    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, qpid: Qpid) -> System:
        return Brokered("Qpid in memory", [qpid], cls.can, qpid_memory_url)


class TestQpid(Faults):
    """Broker-J with its queues on disk."""

    can: ClassVar[Collection[str]] = {"processes", "broker", "cut", "stall", "store"}

    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, qpid_durable: Qpid) -> System:
        return Brokered("Qpid", [qpid_durable], cls.can, qpid_url)


@pytest.mark.faults
class TestNats(Faults):
    """The driver of the example. The ordinary run has those that belong to msgbus only."""

    can: ClassVar[Collection[str]] = {"processes", "broker", "cut", "stall", "store"}

    @pytest.fixture(scope="class")
    @classmethod
    def system(cls, nats: Nats) -> System:
        return Brokered("NATS", [nats], cls.can, nats_url)


class TestFake(Faults):
    """In memory, between threads."""

    can = Fake.can

    @pytest.fixture
    @classmethod
    def system(cls) -> System:
        return Fake(new_url())


class TestZmq(Faults):
    """ZeroMQ between processes of this host."""

    can = LocalZmq.can

    @pytest.fixture
    def system(self, tmp_path_factory: pytest.TempPathFactory) -> System:
        return LocalZmq(tmp_path_factory.mktemp("zmq"))
