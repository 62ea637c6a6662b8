"""How many calls in a second a client and a server of oslo.messaging manage: a figure, and no promise."""

from __future__ import annotations

import pathlib
import uuid

import pytest

from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.openstack import buses
from tests.openstack.buses import Bus
from tests.openstack.figures import Rate, Report
from tests.openstack.peers import Peers

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(300)]
ROUNDS = 3
SECONDS = 3.0
MANY = 32


def measure(bus: Bus, folder: pathlib.Path, report: Report) -> None:
    """Measure each pair of drivers in each round: so whatever else this machine does falls on all of them."""
    pairs = [(client, server) for client in bus.urls for server in bus.urls]
    rates: dict[tuple[str, str, int], list[float]] = {}
    with Peers(bus, folder) as peers:
        targets, clients = {}, {}
        for pair in pairs:
            targets[pair] = {"topic": f"rate-{uuid.uuid4().hex[:8]}", "version": "1.2"}
            peers.serve(pair[1], targets[pair] | {"server": "one"}, peers.new_notes())
            clients[pair] = peers.start(pair[0])
        for _ in range(ROUNDS):
            for threads in (1, MANY):
                for pair in pairs:
                    order = {"do": "rate", "target": targets[pair], "threads": threads, "seconds": SECONDS}
                    rates.setdefault((*pair, threads), []).append(round(clients[pair].ask(order), 1))
    for client, server in pairs:
        found = Rate(bus.name, client, server, rates[client, server, 1], rates[client, server, MANY])
        assert min(found.one + found.many) > 0
        report(found)


def test_rates_on_rabbitmq(rabbitmq: RabbitMQ, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Stock and msgbus, and either with the other."""
    measure(buses.rabbitmq(rabbitmq), tmp_path, report_figures)


def test_rates_on_qpid(qpid: Qpid, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Over AMQP 1.0."""
    measure(buses.qpid(qpid), tmp_path, report_figures)


def test_rates_on_zeromq(tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Without a broker."""
    measure(buses.zmq(tmp_path / "run"), tmp_path, report_figures)
