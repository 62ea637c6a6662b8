"""What the functional tests share: the real brokers, each started once for the whole run."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.functional.brokers.processes import BrokerMissing
from tests.functional.brokers.rabbitmq import RabbitMQ


def _missing(error: BrokerMissing) -> None:
    """A broker that is not there skips its tests on somebody's laptop, and fails them in CI: nothing is untested."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


def _rabbitmq(version: str, folder: pathlib.Path) -> Iterator[RabbitMQ]:
    try:
        node = RabbitMQ(version, folder)
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


@pytest.fixture(scope="session")
def rabbitmq_310(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """RabbitMQ 3.10, running; a test that stops, kills or pauses it leaves it running again."""
    yield from _rabbitmq("3.10", tmp_path_factory.mktemp("rabbitmq-3.10"))


@pytest.fixture(scope="session")
def rabbitmq_43(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """RabbitMQ 4.3, running; a test that stops, kills or pauses it leaves it running again."""
    yield from _rabbitmq("4.3", tmp_path_factory.mktemp("rabbitmq-4.3"))


@pytest.fixture(params=["rabbitmq_310", "rabbitmq_43"])
def rabbitmq(request: pytest.FixtureRequest) -> RabbitMQ:
    """Each RabbitMQ in turn, running: a test that asks for it runs once with each."""
    node: RabbitMQ = request.getfixturevalue(request.param)
    if not node.alive():  # an earlier test failed half-way
        node.start()
    return node
