"""Under load, connections are cut and servers restarted: over msgbus nothing is lost. What stock loses is recorded."""

from __future__ import annotations

import pathlib

import pytest

from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.openstack import buses, load
from tests.openstack.buses import MSGBUS, STOCK
from tests.openstack.figures import Load, Report

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(400)]


def judge(found: Load, report: Report) -> None:
    """Over msgbus nothing is lost, and nothing fails; over stock there was load, at least."""
    report(found)
    assert found.answered
    assert found.casts
    if found.driver == MSGBUS:
        assert (found.timed_out, found.errors, found.lost) == (0, {}, 0)


@pytest.mark.parametrize("driver", [MSGBUS, STOCK])
def test_cuts_on_rabbitmq(rabbitmq: RabbitMQ, driver: str, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Cuts lose no call and no cast."""
    judge(load.cut(buses.rabbitmq(rabbitmq), driver, tmp_path), report_figures)


def test_cuts_on_qpid(qpid: Qpid, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Likewise, over AMQP 1.0."""
    judge(load.cut(buses.qpid(qpid), MSGBUS, tmp_path), report_figures)


def test_cuts_on_zeromq(tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Likewise, without a broker."""
    judge(load.cut_between_peers(buses.zmq(tmp_path / "run"), tmp_path), report_figures)


@pytest.mark.parametrize("driver", [MSGBUS, STOCK])
def test_restarts_on_rabbitmq(rabbitmq: RabbitMQ, driver: str, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Restarts lose no call and no cast."""
    judge(load.restart(buses.rabbitmq(rabbitmq), driver, tmp_path), report_figures)


def test_restarts_on_qpid(qpid: Qpid, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Likewise, over AMQP 1.0."""
    judge(load.restart(buses.qpid(qpid), MSGBUS, tmp_path), report_figures)


def test_restarts_on_zeromq(tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Likewise, without a broker."""
    judge(load.restart(buses.zmq(tmp_path / "run"), MSGBUS, tmp_path), report_figures)
