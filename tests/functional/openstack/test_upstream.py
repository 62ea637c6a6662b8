"""oslo.messaging's own functional tests pass over msgbus, on threads and with eventlet; beside them, over stock."""

from __future__ import annotations

import pathlib

import pytest

from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.conftest import skip_or_fail
from tests.openstack import buses, upstream
from tests.openstack.buses import MSGBUS, STOCK, Bus
from tests.openstack.figures import Report, Upstream
from tests.openstack.upstream import EVENTLET, THREADS

everything = pytest.mark.openstack
"""What the ordinary run leaves out."""


def judge(bus: Bus, driver: str, kind: str, report: Report) -> None:
    """Run them all, and say what has failed."""
    reason = upstream.missing()
    if reason:
        skip_or_fail(reason)
    outcomes = upstream.run(bus.urls[driver], bus.name, kind)
    wrong = [it for it in outcomes if it.outcome != "passed"]
    if wrong:
        parts = (f"{it.test}: {it.outcome}\n{it.why}" for it in wrong)
        pytest.fail(f"{len(wrong)} of {len(outcomes)} did not pass\n" + "\n".join(parts), pytrace=False)
    assert outcomes
    again = sum(it.again for it in outcomes)
    report(Upstream(bus.name, driver, kind, len(outcomes), again, upstream.LEFT_OUT_ON.get(bus.name, {})))


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("driver", "kind"),
    [
        pytest.param(MSGBUS, THREADS, marks=everything),
        (MSGBUS, EVENTLET),
        pytest.param(STOCK, THREADS, marks=everything),
        pytest.param(STOCK, EVENTLET, marks=everything),
    ],
)
def test_all_pass_on_the_newest_rabbitmq(rabbitmq_43: RabbitMQ, driver: str, kind: str, report_figures: Report) -> None:
    """All of oslo.messaging's functional tests pass, but for those that are left out with a reason."""
    judge(buses.rabbitmq(rabbitmq_43), driver, kind, report_figures)


@everything
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", [THREADS, EVENTLET])
@pytest.mark.parametrize("driver", [MSGBUS, STOCK])
def test_all_pass_on_the_oldest_rabbitmq(
    rabbitmq_310: RabbitMQ, driver: str, kind: str, report_figures: Report
) -> None:
    """Likewise."""
    judge(buses.rabbitmq(rabbitmq_310), driver, kind, report_figures)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", [THREADS, pytest.param(EVENTLET, marks=everything)])
def test_all_pass_on_zeromq(tmp_path: pathlib.Path, kind: str, report_figures: Report) -> None:
    """Likewise, without a broker."""
    judge(buses.zmq(tmp_path), MSGBUS, kind, report_figures)


@everything
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", [THREADS, EVENTLET])
def test_all_pass_on_qpid(qpid_durable: Qpid, kind: str, report_figures: Report) -> None:
    """Likewise, over AMQP 1.0."""
    # Qpid in memory needs an option in its URL, which a fixture of theirs does not take.
    judge(buses.qpid_on_disk(qpid_durable), MSGBUS, kind, report_figures)
