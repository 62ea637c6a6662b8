"""What an operation costs in counts, which other load disturbs little: ``python -m benchmarks.counting --help``.

For docs/performance/explanation.md, which says what the counts are.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

from benchmarks import proc
from benchmarks.catalogue import SYSTEMS, Cell, Row
from benchmarks.counted import PYTHON, C
from benchmarks.payloads import SMALL
from benchmarks.peers import sockets
from benchmarks.process import Process
from benchmarks.results import Results
from benchmarks.runner import prepare
from benchmarks.systems import System, running
from benchmarks.workloads import TIMEOUT, WORKLOADS

WARM_UP = 0.5
"""Seconds of load before anything is counted."""
_ATTACHING = 10.0
"""Seconds in which strace has to be attached."""
_ROW = re.compile(r"^\s*(\w+)\s+(\d+)(\s+\d+)?\s*$")

Counts = dict[str, dict[str, float]]
"""Side -> name -> how many for each operation."""
Kind = Literal["functions", "system calls", "waits"]
"""What is counted. RabbitMQ's own count of its work is with the waits: to count other things slows processes down."""


def count(cell: Cell, python: str, system: System, seconds: float, kind: Kind) -> Counts:
    """Count one kind of thing, in fresh processes."""
    row, topic = cell.row, f"bench-{uuid.uuid4().hex}"
    words = (row.peer, system.url, topic, cell.workload, str(cell.size))
    workload = WORKLOADS[cell.workload]
    with ExitStack() as stack:
        stack.callback(sockets.remove, system.url, topic)

        def start(role: str) -> Process:
            module = "benchmarks.counted" if kind == "functions" else "benchmarks.child"
            return stack.enter_context(Process(python, module, role, *words))

        servers = [start("serve") for _ in range(workload.servers)]
        for server in servers:
            server.answer()
        client = start("drive")
        client.answer(others=servers)
        sides = {"client": client, "server": servers[0]}
        pids = {name: side.pid for name, side in sides.items()}
        if system.pids:
            pids["broker"] = max(system.pids, key=_threads)
        sent = load(client, servers, WARM_UP, 0, waits=workload.counts)
        if kind == "system calls":
            return _system_calls(pids, lambda: load(client, servers, seconds, sent, waits=workload.counts) - sent)
        before = _functions(sides) if kind == "functions" else _waits(pids, system)
        done = load(client, servers, seconds, sent, waits=workload.counts) - sent
        after = _functions(sides) if kind == "functions" else _waits(pids, system)
        return {
            side: {name: (number - before[side][name]) / done for name, number in counts.items()}
            for side, counts in after.items()
        }


def _functions(sides: dict[str, Process]) -> dict[str, dict[str, int]]:
    """Side -> name -> how many so far."""
    counted = {name: side.ask({"functions": None}) for name, side in sides.items()}
    return {name: {"Python functions": it[PYTHON], "C functions": it[C]} for name, it in counted.items()}


def _waits(pids: dict[str, int], system: System) -> dict[str, dict[str, int]]:
    """Likewise."""
    found = {name: {"waits": proc.waits(pid)} for name, pid in pids.items()}
    if system.reductions is not None:
        found["broker"]["reductions"] = system.reductions()
    return found


def _system_calls(pids: dict[str, int], run: Callable[[], int]) -> Counts:
    """Those of some processes while `run` runs, which returns how many operations there were."""
    with ExitStack() as stack:
        traced = {name: stack.enter_context(_traced(pid)) for name, pid in pids.items()}
        done = run()
    totals = {name: {"system calls": sum(calls.values()), **calls} for name, calls in traced.items()}
    return {name: {call: times / done for call, times in calls.items()} for name, calls in totals.items()}


def load(client: Process, servers: Sequence[Process], seconds: float, before: int, *, waits: bool) -> int:
    """Have the client do its work, until the servers have done all if they count. Returns how much was done so far."""
    done: int = before + client.ask({"load": seconds}, seconds + 2 * TIMEOUT, servers)["operations"]
    if waits:
        for server in servers:
            server.ask({"processed": done})
    return done


def _threads(pid: int) -> int:
    """How many threads a process has: of a broker's processes, the broker itself has most."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


@contextmanager
def _traced(pid: int) -> Iterator[dict[str, int]]:
    """Count the system calls of a process meanwhile. What is found is there afterwards."""
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "counts"
        command = ["strace", "-f", "-c", "-U", "name,calls,errors", "-o", str(path), "-p", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + _ATTACHING
            while not _is_traced(pid):
                if time.monotonic() > end or process.poll() is not None:
                    process.kill()
                    raise RuntimeError(f"strace cannot be attached to process {pid}")
                time.sleep(0.01)
            try:
                yield found
            finally:
                process.send_signal(signal.SIGINT)
        found |= read_strace(path.read_text())


def _is_traced(pid: int) -> bool:
    """Whether all threads of a process are traced."""
    paths = pathlib.Path(f"/proc/{pid}/task").glob("*/status")
    return not any("TracerPid:\t0\n" in path.read_text() for path in paths)


def read_strace(text: str) -> dict[str, int]:
    """The counts of system calls in the table that ``strace -c -U name,calls,errors`` writes."""
    rows = (_ROW.match(line) for line in text.splitlines())
    return {row[1]: int(row[2]) for row in rows if row and row[1] != "total"}


def report(found: Counts) -> str:
    """A line for each side; what happens less than once in 100 operations is left out."""
    lines = []
    for side, counts in found.items():
        ranked = sorted(counts.items(), key=lambda pair: -pair[1])
        lines.append(f"  {side}: {', '.join(f'{name} {number:.2f}' for name, number in ranked if number >= 0.01)}")
    return "\n".join(lines)


def find_row(system: str, name: str, workload: str) -> Row:
    """The row of that name.

    Raises:
        ValueError: there is none, or it has no such workload.
    """
    for row in SYSTEMS.get(system, ()):
        if row.name == name and workload in row.workloads and not row.together:
            return row
    raise ValueError(f"on {system} there is no row {name} with the workload {workload} and processes of its own")


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counting", description=__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("row")
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load")
    parser.add_argument("--url", help="a message system that runs already")
    asked = parser.parse_args(words)
    try:
        row = find_row(asked.system, asked.row, asked.workload)
    except ValueError as exc:
        parser.error(str(exc))
    results = Results()
    pythons = prepare([row], results, lambda _text: None)
    if row.name not in pythons:
        parser.error(results.left_out[row.name])
    cell: Any = Cell(asked.system, asked.workload, SMALL, row)
    with running(asked.system, asked.url) as system:
        kinds: tuple[Kind, ...] = get_args(Kind)
        for kind in kinds:
            if kind == "system calls" and shutil.which("strace") is None:
                sys.stdout.write("system calls: strace is not installed\n")
                continue
            found = count(cell, pythons[row.name], system, asked.seconds, kind)
            sys.stdout.write(f"{kind}\n{report(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
