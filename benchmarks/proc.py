"""What /proc says of processes: the CPU that they used, and their memory."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterable

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU seconds that the processes have used so far, in user and in system, all threads. Ended ones count nothing."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK


def peak_memory(pid: int) -> float:
    """The most resident memory that a process has had, in MB (a million bytes)."""
    return _status(pid, "VmHWM")


def memory(pid: int) -> float:
    """The resident memory of a process, in MB."""
    return _status(pid, "VmRSS")


def own_memory(pid: int) -> float:
    """The memory of a process that it shares with no other, in MB."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def waits(pid: int) -> int:
    """How often the threads of a process have given up the processor by themselves. Ended threads count nothing."""
    total = 0
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):
            total += int(path.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total


def descriptors(pid: int) -> tuple[int, int]:
    """How many file descriptors a process has open, and how many of them are sockets."""
    links = []
    for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # It was closed meanwhile.
            links.append(os.readlink(path))
    return len(links), sum(link.startswith("socket:") for link in links)


def children(pid: int) -> set[int]:
    """All processes that descend from a process."""
    parents: dict[int, int] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _status(pid: int, field: str) -> float:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / 1e6
    raise ValueError(f"/proc/{pid}/status has no {field}: the process has ended")
