"""What the functional tests share: the real brokers, each started once for the whole run."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NoReturn, TypeVar

import pytest

import msgbus
from msgbus.conformance.suite import BusConformance
from tests.faults import figures
from tests.functional.brokers.cluster import Cluster
from tests.functional.brokers.nats import Nats
from tests.functional.brokers.processes import BrokerMissing
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.brokers.redis import Redis
from tests.functional.services import Connect
from tests.openstack import figures as openstack
from tests.support import new_transport

Broker = TypeVar("Broker", RabbitMQ, Cluster, Qpid, Redis, Nats)
MADE_ON = pytest.StashKey[dict[str, str]]()
"""What this run is made on, if what it finds is recorded."""


def pytest_configure(config: pytest.Config) -> None:
    """Before anything runs, see how busy the machine is."""
    if openstack.is_recorded():
        config.stash[MADE_ON] = openstack.about()


@pytest.hookimpl(tryfirst=True)  # before what is marked is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow checks of the conformance suite are run with clients or servers for asyncio by ``tox -e soak`` only.

    Classes and modules whose tests may take longest come first: what begins last would keep all others waiting.
    """
    longest: dict[str, float] = {}
    for item in items:
        cls = item.cls if isinstance(item, pytest.Function) and item.name.startswith("test_slow") else None
        if cls is not None and issubclass(cls, BusConformance) and "asyncio" in (cls.clients, cls.servers):
            item.add_marker("soak")
        timeout = item.get_closest_marker("timeout")
        scope = _scope(item)
        longest[scope] = max(longest.get(scope, 0.0), 0.0 if timeout is None else timeout.args[0])
    items.sort(key=lambda item: -longest[_scope(item)])


def _scope(item: pytest.Item) -> str:
    """What pytest-xdist keeps together: the tests of a class, or of a module outside of its classes."""
    return item.nodeid.rpartition("::")[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what the scenarios of `tests.faults` came to; with ``MSGBUS_RECORD=1`` keep it for the documentation.

    So what the judges of `tests.openstack` have found.
    """
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    judged = openstack.reported(reports)
    if judged:
        terminalreporter.write_line(openstack.text(judged))
        if openstack.is_recorded():
            openstack.record(judged, config.stash[MADE_ON])
    found = figures.reported(reports)
    if found:
        terminalreporter.write_line(figures.text(found))
        if os.environ.get("MSGBUS_RECORD"):
            figures.record(found)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the ends of the logs of the cluster that it used, which are removed with the cluster."""
    report = yield
    values: dict[str, object] = getattr(item, "funcargs", {})
    if report.failed:
        for cluster in {value for value in values.values() if isinstance(value, Cluster)}:
            report.sections += [(f"Log of {node.node_name}", node.log_tail()) for node in cluster.nodes]
    return report


def skip_or_fail(what: str) -> NoReturn:
    """What is missing skips its tests on somebody's laptop, and fails them in CI: nothing is untested."""
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def _missing(error: BrokerMissing) -> None:
    skip_or_fail(str(error))


def _running(make: Callable[[], Broker]) -> Iterator[Broker]:
    try:
        node = make()
    except BrokerMissing as error:
        _missing(error)
        raise
    try:
        try:
            node.start()
        except BrokerMissing as error:
            _missing(error)
        yield node
    finally:
        node.close()


@pytest.fixture
def report_figures(record_property: Callable[[str, object], None]) -> openstack.Report:
    """Lets figures of `tests.openstack` travel with the test's report."""
    return openstack.reporter(record_property)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with a short name: a Unix socket has a path of at most 107 bytes, and the names of tests are long."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes transports, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **overrides: Any) -> msgbus.Transport:
            transport = new_transport(url, **overrides)
            stack.callback(transport.cleanup)
            return transport

        yield make


@pytest.fixture(scope="session")
def rabbitmq_310(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """RabbitMQ 3.10, running; a test that stops, kills or pauses it leaves it running again."""
    yield from _running(lambda: RabbitMQ("3.10", tmp_path_factory.mktemp("rabbitmq-3.10")))


@pytest.fixture(scope="session")
def rabbitmq_43(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """RabbitMQ 4.3, running; a test that stops, kills or pauses it leaves it running again."""
    yield from _running(lambda: RabbitMQ("4.3", tmp_path_factory.mktemp("rabbitmq-4.3")))


@pytest.fixture(params=["rabbitmq_310", "rabbitmq_43"])
def rabbitmq(request: pytest.FixtureRequest) -> RabbitMQ:
    """Each RabbitMQ in turn, running: a test that asks for it runs once with each."""
    node: RabbitMQ = request.getfixturevalue(request.param)
    if not node.alive():  # an earlier test failed half-way
        node.start()
    return node


@pytest.fixture(scope="session")
def rabbitmq_cluster_310(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of RabbitMQ 3.10, running; a test that disturbs them calls `restore` when it begins."""
    yield from _running(lambda: Cluster("3.10", tmp_path_factory.mktemp("cluster-3.10")))


@pytest.fixture(scope="session")
def rabbitmq_cluster_43(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of RabbitMQ 4.3, likewise."""
    yield from _running(lambda: Cluster("4.3", tmp_path_factory.mktemp("cluster-4.3")))


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis, running, with a password; a test that stops, kills or pauses it has one of its own."""
    yield from _running(lambda: Redis(tmp_path_factory.mktemp("redis"), password="s3cret"))


@pytest.fixture(scope="session")
def lasting_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis that keeps its data, running; a test that stops, kills or pauses it leaves it running again."""
    yield from _running(lambda: Redis(tmp_path_factory.mktemp("lasting-redis"), password="s3cret", keeps=True))


@pytest.fixture(scope="session")
def qpid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qpid]:
    """Broker-J that keeps all in memory, running; a test that stops, kills or pauses it leaves it running again."""
    yield from _running(lambda: Qpid(tmp_path_factory.mktemp("qpid")))


@pytest.fixture(scope="session")
def qpid_durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qpid]:
    """The same with queues and messages on disk, for tests that stop or kill it and expect them back."""
    yield from _running(lambda: Qpid(tmp_path_factory.mktemp("qpid-durable"), durable=True))


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    """A NATS server, running; a test that stops, kills or pauses it leaves it running again."""
    yield from _running(lambda: Nats(tmp_path_factory.mktemp("nats")))
