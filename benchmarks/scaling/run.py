"""Measures how the cost of a call grows, one scenario after the other."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks import proc
from benchmarks.process import Failed, Process
from benchmarks.results import Figures
from benchmarks.scaling.child import START_SECONDS
from benchmarks.scaling.points import Point, Points
from benchmarks.systems import System, SystemMissing, running
from benchmarks.workloads import THREADS

TOGETHER = 25
"""So many servers share a process, but for the first, which is looked at: it is their number that counts."""
SAMPLES = 50
"""How often memory is looked at."""


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        in_flight, topics, servers: the counts at which it is.
        calls: how many are made while memory is looked at.
    """

    in_flight: tuple[int, ...] = (1, 10, 100, 1000, 10_000)
    topics: tuple[int, ...] = (1, 10, 100, 1000, 10_000)
    servers: tuple[int, ...] = (1, 10, 50, 100, 200)
    calls: int = 1_000_000

    def up_to(self, largest: int) -> Plan:
        """Without the counts above `largest`, and with at most a hundred times as many calls."""
        kept = ([count for count in counts if count <= largest] for counts in self[:3])
        in_flight, topics, servers = map(tuple, kept)
        return Plan(in_flight, topics, servers, min(self.calls, 100 * largest))

    def steps(self) -> list[tuple[str, int]]:
        """The scenarios with their counts."""
        counts = {"in_flight": self.in_flight, "topics": self.topics, "servers": self.servers, "calls": (self.calls,)}
        return [(scenario, count) for scenario, found in counts.items() for count in found]


def run(
    plan: Plan,
    names: Sequence[str],
    urls: dict[str, str],
    points: Points,
    seconds: float,
    progress: Callable[[str], None],
    done: Callable[[], None],
) -> None:
    """Measure all of a plan on each message system, and note what was found, or why it was not.

    Args:
        plan: what.
        names: of message systems.
        urls: those of them that run already.
        points: where to note it.
        seconds: of load, for each point.
        progress: told before each point.
        done: called after each.
    """
    measures = {"in_flight": _in_flight, "topics": _topics, "servers": _servers, "calls": _calls}
    for name in names:
        try:
            with running(name, urls.get(name)) as system:
                if system.broker:
                    points.about[f"broker of {name}"] = system.broker
                for scenario, count in plan.steps():
                    progress(f"{name} {scenario} {count:,}")
                    try:
                        for x, figures in measures[scenario](system, count, seconds):
                            points.points.append(Point(scenario, name, x, figures))
                    except Failed as exc:
                        points.left_out[f"{name} {scenario} {count:,}"] = str(exc)
                    done()
        except SystemMissing as exc:
            points.left_out[name] = str(exc)


_Found = list[tuple[int, Figures]]


def _in_flight(system: System, count: int, seconds: float) -> _Found:
    return [(count, _load(system, 1, count, seconds))]


def _topics(system: System, count: int, seconds: float) -> _Found:
    return [(count, _load(system, count, THREADS, seconds))]


def _load(system: System, topics: int, threads: int, seconds: float) -> Figures:
    topic = f"scale-{uuid.uuid4().hex}"
    with ExitStack() as stack:
        server = _start(stack, "topics", system.url, topic, str(topics))
        server.answer(START_SECONDS)
        client = _start(stack, "call", system.url, topic, str(topics), str(threads))
        client.answer()
        client.ask(["start", 0], START_SECONDS, [server])
        return _figures(client, server, system, seconds)


def _servers(system: System, count: int, seconds: float) -> _Found:
    topic = f"scale-{uuid.uuid4().hex}"
    with ExitStack() as stack:
        firsts = [0, *range(1, count, TOGETHER)]
        sizes = [1, *(min(TOGETHER, count - at) for at in firsts[1:])]
        servers = [
            _start(stack, "servers", system.url, topic, str(first), str(size))
            for first, size in zip(firsts, sizes, strict=True)
        ]
        for server in servers:
            server.answer(START_SECONDS)
        client = _start(stack, "call", system.url, topic, "1", str(THREADS))
        client.answer()
        before = proc.own_memory(client.pid)
        first, second = client.ask(["ping", count])
        client_files, client_sockets = proc.descriptors(client.pid)
        server_files, server_sockets = proc.descriptors(servers[0].pid)
        sizes_now = {
            "first_ping_ms": first * 1000,
            "next_ping_ms": second * 1000,
            "client_grows_mb": proc.own_memory(client.pid) - before,
            "client_sockets": client_sockets,
            "client_descriptors": client_files,
            "server_own_mb": proc.own_memory(servers[0].pid),
            "server_sockets": server_sockets,
            "server_descriptors": server_files,
        }
        client.ask(["start", 0], START_SECONDS)
        return [(count, _figures(client, servers[0], system, seconds, count == 1) | sizes_now)]


def _calls(system: System, count: int, seconds: float) -> _Found:
    """So many calls, with a look at the memory of both sides now and then."""
    topic = f"scale-{uuid.uuid4().hex}"
    found: _Found = []
    with ExitStack() as stack:
        server = _start(stack, "topics", system.url, topic, "1")
        server.answer(START_SECONDS)
        client = _start(stack, "call", system.url, topic, "1", str(THREADS))
        client.answer()
        client.ask(["start", 0], START_SECONDS)
        made, due = 0, 0
        while made < count:
            made += client.ask(["measure", min(seconds, 0.2)])["operations"]
            if made >= due:
                memory = {"client_rss_mb": proc.memory(client.pid), "server_rss_mb": proc.memory(server.pid)}
                found.append((made, memory))
                due = made + count // SAMPLES
        client.ask(["stop", 0])
    return found


def _start(stack: ExitStack, *words: str) -> Process:
    return stack.enter_context(Process(sys.executable, "benchmarks.scaling.child", *words))


def _figures(client: Process, server: Process, system: System, seconds: float, alone: bool = True) -> Figures:
    """What calls cost while they go on. `alone`: this server has them all."""
    before = [proc.cpu_seconds(pids) for pids in ({client.pid}, {server.pid}, system.pids)]
    load = client.ask(["measure", seconds], seconds + START_SECONDS)
    after = [proc.cpu_seconds(pids) for pids in ({client.pid}, {server.pid}, system.pids)]
    operations = load["operations"]
    if not operations:
        raise Failed("no call was answered in the time")
    used = [(end - begin) / operations * 1e6 for end, begin in zip(after, before, strict=True)]
    found = {
        "per_second": operations / load["seconds"],
        "client_cpu_us": used[0],
        "client_memory_mb": proc.peak_memory(client.pid),
        "server_memory_mb": proc.peak_memory(server.pid),
    }
    if alone:
        found["server_cpu_us"] = used[1]
    if system.pids:
        found["broker_cpu_us"] = used[2]
    return found
