"""Load while something breaks: connections are cut, or servers restarted, and what is lost is counted."""

from __future__ import annotations

import itertools
import pathlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.process import Process
from tests.functional.brokers.processes import poll
from tests.functional.brokers.proxy import Proxy
from tests.openstack.buses import MSGBUS, Bus
from tests.openstack.figures import Load
from tests.openstack.peers import Notes, Peers

SECONDS = 30.0
"""How long the load lasts."""
CUT_EVERY = 2.0
"""Seconds between two cuts."""
RESTARTS = 6
CALL_SECONDS = 20.0
"""The timeout of each call."""
LOAD = {"threads": 8, "casts": 100, "work": 0.02, "timeout": CALL_SECONDS}
"""What the client makes: see `peer_load.Load`."""
SERVERS = 2
SERVER_THREADS = 4
"""Few, so that some requests wait in a server that is stopped."""
SETTLE_SECONDS = 30.0
"""What no server has run by so long after the last run counts as lost."""


class Judged:
    """Servers of a topic, and a client that makes load."""

    def __init__(self, peers: Peers, driver: str) -> None:
        self._peers = peers
        self.driver = driver
        self._topic = f"load-{uuid.uuid4().hex[:8]}"
        self.notes = peers.new_notes()
        self._names = itertools.count()
        self.servers = [self.new_server() for _ in range(SERVERS)]
        self.client = peers.start(driver)

    def new_server(self) -> Process:
        """A server with a name of its own."""
        target = {"topic": self._topic, "version": "1.2", "server": f"server-{next(self._names)}"}
        return self._peers.serve(self.driver, target, self.notes, threads=SERVER_THREADS)

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


def cut(bus: Bus, driver: str, folder: pathlib.Path) -> Load:
    """Cut all connections to the broker again and again, while there is load."""
    assert bus.port is not None
    proxy = Proxy(bus.port)
    try:
        with Peers(bus.through(proxy.port), folder) as peers:
            return _cut_again_and_again(bus, Judged(peers, driver), proxy.cut)
    finally:
        proxy.close()


def cut_between_peers(bus: Bus, folder: pathlib.Path) -> Load:
    """Without a broker: cut all connections of the servers again and again, which are those to the client too."""
    with Peers(bus, folder) as peers:
        judged = Judged(peers, MSGBUS)

        def cut_at_servers() -> None:
            cut = [server.ask({"do": "cut"}) for server in judged.servers]
            assert all(cut), f"so many connections were cut at each server: {cut}"

        return _cut_again_and_again(bus, judged, cut_at_servers)


def _cut_again_and_again(bus: Bus, judged: Judged, cut_all: Callable[[], None]) -> Load:
    judged.begin()
    cuts = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() + CUT_EVERY < end:
        threading.Event().wait(CUT_EVERY)
        cut_all()
        cuts += 1
    return figures("cut", bus, judged.driver, cuts, judged.finish(), judged.notes)


def restart(bus: Bus, driver: str, folder: pathlib.Path) -> Load:
    """Stop one server after the other in good order, and start another in its place, while there is load."""
    with Peers(bus, folder) as peers:
        judged = Judged(peers, driver)
        judged.begin()
        for number in range(RESTARTS):
            threading.Event().wait(SECONDS / (RESTARTS + 1))
            judged.servers[number % SERVERS].ask({"do": "stop"})
            judged.servers[number % SERVERS] = judged.new_server()
        return figures("restarted", bus, driver, RESTARTS, judged.finish(), judged.notes)
