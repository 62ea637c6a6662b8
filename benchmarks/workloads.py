"""The workloads, and what is measured of each."""

from __future__ import annotations

from typing import NamedTuple

THREADS = 32
"""Callers in one process: threads, or tasks of asyncio."""
TASKS = 1000
"""Callers in one process that are so many that they have to be tasks."""
SUBSCRIBERS = 8
TIMEOUT = 60.0
"""Seconds after which an answer that has not come is an error."""


class Workload(NamedTuple):
    """One kind of load.

    Attributes:
        text: what it is.
        figure: which figure is compared.
        unit: of that figure.
        less_is_better: of that figure.
        counts: servers count what arrives, and the time ends when all has been processed.
        servers: how many there are, each a process.
    """

    text: str
    figure: str
    unit: str
    less_is_better: bool = False
    counts: bool = False
    servers: int = 1


WORKLOADS = {
    "call_seq": Workload("one caller, one call after another", "p50_us", "p50 us", less_is_better=True),
    "call_conc": Workload(f"{THREADS} callers in one process", "per_second", "calls/s"),
    "call_tasks": Workload(f"{TASKS:,} callers in one process, tasks of asyncio", "per_second", "calls/s"),
    "cast": Workload(
        "one caller, one cast after another, until the server has processed all", "per_second", "casts/s", counts=True
    ),
    "cast_many": Workload(
        "as many casts as one process can send, until the server has processed all",
        "per_second",
        "casts/s",
        counts=True,
    ),
    "fanout": Workload(
        f"to {SUBSCRIBERS} servers, until each has processed all",
        "per_second",
        "deliveries/s",
        counts=True,
        servers=SUBSCRIBERS,
    ),
    "multicall": Workload("one stream after another, each read to its end", "per_second", "items/s"),
}
