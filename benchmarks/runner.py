"""Measures: starts the processes of a measurement, gives them their work, and looks at what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks import environments, machine, proc
from benchmarks.catalogue import Cell, Row
from benchmarks.peers import sockets
from benchmarks.process import Failed, Process
from benchmarks.results import Figures, Measurement, Results
from benchmarks.systems import System, SystemMissing, running
from benchmarks.workloads import TIMEOUT, WORKLOADS

WARM_UP = 0.5
"""Seconds of load before it counts, at most."""

_END_SECONDS = 0.5
"""How long a process that has failed may take to end."""

Progress = Callable[[str], None]
"""Called with what is about to be done."""


def prepare(rows: Iterable[Row], results: Results, progress: Progress) -> dict[str, str]:
    """Make the environments of libraries that need one of their own; note their versions, and which cannot be had.

    Returns:
        the row's name -> its interpreter, of all rows that can be measured.
    """
    pythons: dict[str, str] = {}
    for row in rows:
        if row.own is None:
            pythons[row.name] = sys.executable
            results.versions.setdefault(row.name, {}).update(machine.versions(row.shown))
        elif row.name not in pythons and row.name not in results.left_out:
            progress(f"environment of {row.name}")
            try:
                own = environments.get(row.own.requirements[0], row.own.requirements, row.own.module)
            except environments.PeerMissing as exc:
                results.left_out[row.name] = str(exc)
            else:
                pythons[row.name] = own.python
                results.versions[row.name] = {name: own.versions.get(name, "?") for name in row.own.shown}
    return pythons


def measure(cell: Cell, python: str, system: System, seconds: float) -> Figures:
    """Measure once, in fresh processes.

    Raises:
        Failed: something went wrong.
    """
    row = cell.row
    topic = f"bench-{uuid.uuid4().hex}"
    words = (row.peer, system.url, topic, cell.workload, str(cell.size))
    with ExitStack() as stack:
        stack.callback(sockets.remove, system.url, topic)

        def start(role: str) -> Process:
            return stack.enter_context(Process(python, "benchmarks.child", role, *words))

        servers = [] if row.together else [start("serve") for _ in range(WORKLOADS[cell.workload].servers)]
        for server in servers:
            server.answer()
        client = start("both" if row.together else "drive")
        try:
            client.answer(others=servers)
            return _load(cell, client, servers, system, seconds)
        except Failed:
            for server in servers:
                server.check(_END_SECONDS)  # What happened to it is the reason for what its client says.
            raise


def _load(cell: Cell, client: Process, servers: Sequence[Process], system: System, seconds: float) -> Figures:
    """Have the client do its work, and look at what it costs."""
    workload = WORKLOADS[cell.workload]
    counting = servers or [client]
    sent: int = client.ask({"load": min(WARM_UP, seconds)}, others=servers)["operations"]
    if workload.counts:
        _processed(counting, sent)
    before = _cpu(client, servers, system)
    load = client.ask({"load": seconds}, seconds + 2 * TIMEOUT, servers)
    took = load["seconds"]
    if workload.counts:
        took = _processed(counting, sent + load["operations"]) - load["begun"]
    used = [now - then for now, then in zip(_cpu(client, servers, system), before, strict=True)]
    memory = {"client_memory_mb": proc.peak_memory(client.pid)}
    if servers:
        memory["server_memory_mb"] = max(proc.peak_memory(server.pid) for server in servers)
    return figures(load, took, used, workload.servers, bool(servers), bool(system.pids)) | memory


def _processed(servers: Sequence[Process], count: int) -> float:
    """Wait until each server has processed so many; the time when the last had."""
    for server in servers:
        server.tell({"processed": count})
    return max(float(server.answer()) for server in servers)


def _cpu(client: Process, servers: Sequence[Process], system: System) -> list[float]:
    """CPU seconds of the client, of all servers, and of the broker."""
    return [
        proc.cpu_seconds([client.pid]),
        proc.cpu_seconds(server.pid for server in servers),
        proc.cpu_seconds(system.pids),
    ]


def figures(
    load: dict[str, Any], took: float, used: Sequence[float], servers: int, apart: bool, broker: bool
) -> Figures:
    """The figures of what was measured.

    Args:
        load: what the client says.
        took: seconds, until all was processed.
        used: CPU seconds of the client, of all servers and of the broker.
        servers: how many each operation went to.
        apart: the servers are processes of their own.
        broker: its processes are known.
    """
    operations = load["operations"]
    if not operations:
        raise Failed("nothing was done in the time")
    found = {"per_second": servers * operations / took, "client_cpu_us": used[0] / operations * 1e6}
    if apart:
        found["server_cpu_us"] = used[1] / operations * 1e6
    if broker:
        found["broker_cpu_us"] = used[2] / operations * 1e6
    if load["p50"] is not None:
        found["p50_us"] = load["p50"] * 1e6
    return found


def run(
    cells: Sequence[Cell],
    results: Results,
    rounds: int,
    seconds: float,
    urls: dict[str, str],
    progress: Progress,
    done: Callable[[], None],
) -> None:
    """Measure each cell once in each round, and note what was found, or why it was not.

    What is compared is measured one after the other, in each round again: so whatever else the machine does meanwhile
    falls on all.

    Args:
        cells: what to measure.
        results: where to note it.
        rounds: how often.
        seconds: of load, for each measurement.
        urls: message systems that run already.
        progress: told before each measurement.
        done: called after each.
    """
    pythons = prepare((cell.row for cell in cells), results, progress)
    with ExitStack() as stack:
        systems: dict[str, System] = {}
        for name in dict.fromkeys(cell.system for cell in cells):
            progress(f"start of {name}")
            try:
                systems[name] = stack.enter_context(running(name, urls.get(name)))
            except SystemMissing as exc:
                results.left_out[name] = str(exc)
            else:
                if systems[name].broker:
                    results.about[f"broker of {name}"] = systems[name].broker
        for number in range(rounds):
            for cell in cells:
                label = f"{cell.system} {cell.workload} {cell.size} {cell.row.name}"
                progress(f"round {number + 1}: {label}")
                if cell.system in systems and cell.row.name in pythons and label not in results.left_out:
                    try:
                        found = measure(cell, pythons[cell.row.name], systems[cell.system], seconds)
                    except Failed as exc:
                        results.left_out[label] = str(exc)
                    else:
                        results.add(Measurement(number, cell.system, cell.workload, cell.size, cell.row.name, found))
                done()


def import_ms(times: int = 5) -> list[float]:
    """How long ``import msgbus`` takes in a fresh interpreter, in milliseconds, so many times."""
    code = "import time; begun = time.perf_counter(); import msgbus; print((time.perf_counter() - begun) * 1000)"
    # As with programs that are installed: what is compiled the first time is kept.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    found = [subprocess.run(command, env=env, capture_output=True, check=True).stdout for _ in range(times + 1)]
    return [float(text) for text in found[1:]]
