"""Under load, connections are cut and servers restarted: over msgbus nothing is lost. What stock loses is recorded."""

from __future__ import annotations

import itertools
import pathlib
import threading
import time
import uuid
from collections import Counter
from typing import Any

import pytest

from benchmarks.process import Process
from tests.functional.brokers.processes import poll
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.openstack import buses
from tests.openstack.buses import MSGBUS, STOCK, Bus
from tests.openstack.figures import Load, Report
from tests.openstack.peers import Notes, Peers

pytestmark = [pytest.mark.openstack, pytest.mark.timeout(400)]
SECONDS = 30.0
"""How long the load lasts."""
CUT_EVERY = 2.0
"""Seconds between two cuts."""
RESTARTS = 6
CALL_SECONDS = 20.0
"""The timeout of each call."""
LOAD = {"threads": 8, "casts": 100, "work": 0.02, "timeout": CALL_SECONDS}
SETTLE_SECONDS = 30.0
"""What no server has run by so long after the last run counts as lost."""


class Judged:
    """Two servers of a topic, and a client that makes load."""

    def __init__(self, peers: Peers, driver: str) -> None:
        self._peers = peers
        self._driver = driver
        self._topic = f"load-{uuid.uuid4().hex[:8]}"
        self.notes = peers.new_notes()
        self._names = itertools.count()
        self.servers = [self.new_server() for _ in range(2)]
        self.client = peers.start(driver)

    def new_server(self) -> Process:
        """A server with a name of its own, and few threads: so some requests wait in it."""
        target = {"topic": self._topic, "version": "1.2", "server": f"server-{next(self._names)}"}
        return self._peers.serve(self._driver, target, self.notes, threads=4)

    def begin(self) -> None:
        """Begin the load."""
        target = {"topic": self._topic, "version": "1.2"}
        self.client.tell({"do": "load", "target": target, "seconds": SECONDS, "name": "load"} | LOAD)

    def finish(self) -> dict[str, Any]:
        """What came of the calls and the casts, once it has ended."""
        found: dict[str, Any] = self.client.answer(SECONDS + 3 * CALL_SECONDS)
        return found


def runs(notes: Notes, sent: int) -> Counter[str]:
    """How often each cast was run, once all were or no more come."""
    seen = [0, time.monotonic()]

    def are_over() -> bool:
        count = len(notes.lines())
        if count > seen[0]:
            seen[:] = [count, time.monotonic()]
        return len({text for text, _ in notes.lines()}) >= sent or time.monotonic() > seen[1] + SETTLE_SECONDS

    poll(are_over, 300, "the casts")
    return Counter(text for text, _ in notes.lines())


def figures(what: str, bus: Bus, driver: str, times: int, found: dict[str, Any], notes: Notes) -> Load:
    """Sum up."""
    sent = {f"load {number}" for number in found["casts"]}
    counts = runs(notes, len(sent))
    return Load(
        what=what,
        system=bus.name,
        driver=driver,
        times=times,
        answered=found["answered"],
        timed_out=found["timed_out"],
        slowest=round(found["slowest"], 1),
        errors=found["errors"],
        casts=len(sent),
        lost=len(sent - counts.keys()),
        twice=sum(count > 1 for count in counts.values()),
    )


def judge(load: Load) -> None:
    """Over msgbus nothing is lost, and nothing fails; over stock there was load, at least."""
    assert load.answered
    assert load.casts
    if load.driver == MSGBUS:
        assert (load.timed_out, load.errors, load.lost) == (0, {}, 0)


def cut_again_and_again(bus: Bus, driver: str, folder: pathlib.Path, report: Report) -> None:
    """Cut all connections every two seconds while there is load."""
    assert bus.port is not None
    proxy = Proxy(bus.port)
    try:
        with Peers(bus.through(proxy.port), folder) as peers:
            judged = Judged(peers, driver)
            judged.begin()
            cuts = 0
            end = time.monotonic() + SECONDS
            while time.monotonic() + CUT_EVERY < end:
                threading.Event().wait(CUT_EVERY)
                proxy.cut()
                cuts += 1
            load = figures("cut", bus, driver, cuts, judged.finish(), judged.notes)
    finally:
        proxy.close()
    report(load)
    judge(load)


def restart_again_and_again(bus: Bus, driver: str, folder: pathlib.Path, report: Report) -> None:
    """Stop one of two servers in good order, and start another in its place, while there is load."""
    with Peers(bus, folder) as peers:
        judged = Judged(peers, driver)
        judged.begin()
        for number in range(RESTARTS):
            threading.Event().wait(SECONDS / (RESTARTS + 1))
            judged.servers[number % 2].ask({"do": "stop"})
            judged.servers[number % 2] = judged.new_server()
        load = figures("restarted", bus, driver, RESTARTS, judged.finish(), judged.notes)
    report(load)
    judge(load)


@pytest.mark.parametrize("driver", [MSGBUS, STOCK])
def test_cuts_on_rabbitmq(rabbitmq: RabbitMQ, driver: str, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Cuts lose no call and no cast."""
    cut_again_and_again(buses.rabbitmq(rabbitmq), driver, tmp_path, report_figures)


def test_cuts_on_qpid(qpid: Qpid, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Likewise, over AMQP 1.0."""
    cut_again_and_again(buses.qpid(qpid), MSGBUS, tmp_path, report_figures)


@pytest.mark.parametrize("driver", [MSGBUS, STOCK])
def test_restarts_on_rabbitmq(rabbitmq: RabbitMQ, driver: str, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Restarts lose no call and no cast."""
    restart_again_and_again(buses.rabbitmq(rabbitmq), driver, tmp_path, report_figures)


def test_restarts_on_qpid(qpid: Qpid, tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Likewise, over AMQP 1.0."""
    restart_again_and_again(buses.qpid(qpid), MSGBUS, tmp_path, report_figures)


def test_restarts_on_zeromq(tmp_path: pathlib.Path, report_figures: Report) -> None:
    """Likewise, without a broker."""
    restart_again_and_again(buses.zmq(tmp_path / "run"), MSGBUS, tmp_path, report_figures)
