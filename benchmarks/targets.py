"""What msgbus aims at, for payloads of 100 bytes: ratios to other rows of the same run, and limits of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.catalogue import OURS, OURS_ASYNC, Cell
from benchmarks.payloads import SMALL
from benchmarks.workloads import WORKLOADS


class Target(NamedTuple):
    """What a figure of msgbus should be.

    Attributes:
        limit: of the figure, or of its ratio to the same figure of `other`.
        at_least: the limit is the least, and not the most.
        other: the row that it is compared with; None means that the limit is absolute.
        figure: its name; None is the one that is compared in this workload.
        row: which of ours.
        others_workload: that of the other row; None is the same.
    """

    system: str
    workload: str
    limit: float
    at_least: bool
    other: str | None = None
    figure: str | None = None
    row: str = OURS
    others_workload: str | None = None

    @property
    def name(self) -> str:
        """The name of the figure."""
        return self.figure or WORKLOADS[self.workload].figure

    @property
    def compared(self) -> str:
        """What it is compared with; nothing where the limit is absolute."""
        return f"{self.other or ''}{f', {self.others_workload}' if self.others_workload else ''}"

    def is_met(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


def _at_least(system: str, workload: str, limit: float, other: str) -> Target:
    return Target(system, workload, limit, True, other)


def _at_most(system: str, workload: str, limit: float, other: str) -> Target:
    return Target(system, workload, limit, False, other)


def _asynchronous() -> Iterator[Target]:
    """Those of the API for asyncio, on both sides."""
    for system, workload, limit, other, others in (
        ("rabbit", "call_conc", 3.5, "pyamqp-windowed", None),
        ("rabbit", "call_tasks", 4.5, "pyamqp-windowed", "call_conc"),
        ("zmq", "call_conc", 1.5, "pyzmq", None),
        ("zmq", "call_tasks", 1.0, "pyzmq", "call_conc"),
    ):
        yield Target(system, workload, limit, True, other, row=OURS_ASYNC, others_workload=others)
    for system in ("rabbit", "zmq"):
        yield Target(system, "call_seq", 1.0, False, OURS, row=OURS_ASYNC)
    for system, peers, workloads in (
        ("rabbit", ("FastStream", "aio-pika"), ("call_conc", "call_tasks", "cast", "cast_many", "fanout")),
        ("zmq", ("grpcio-aio",), ("call_conc", "call_tasks", "cast_many", "multicall")),
    ):
        for peer in peers:
            yield Target(system, "call_seq", 1.0, False, peer, row=OURS_ASYNC)
            yield from (Target(system, workload, 1.0, True, peer, row=OURS_ASYNC) for workload in workloads)


TARGETS = (
    _at_most("rabbit", "call_seq", 0.80, "pyamqp"),
    _at_least("rabbit", "call_conc", 2.5, "pyamqp-windowed"),
    _at_least("rabbit", "cast", 1.0, "pyamqp-confirmed"),
    _at_least("rabbit", "cast_many", 1.0, "kombu"),
    _at_least("rabbit", "fanout", 1.0, "kombu"),
    _at_most("zmq", "call_seq", 1.3, "pyzmq"),
    _at_most("zmq", "call_seq", 1.0, "rpyc"),
    _at_least("zmq", "call_conc", 1.0, "pyzmq"),
    _at_least("zmq", "call_conc", 1.0, "rpyc"),
    _at_least("zmq", "cast_many", 1.0, "zerorpc"),
    _at_least("zmq", "cast_many", 1.0, "rpyc"),
    _at_least("zmq", "fanout", 0.5, "pyzmq-pubsub"),
    _at_most("qpid", "call_seq", 0.7, "proton"),
    _at_least("qpid", "call_conc", 2.0, "proton"),
    _at_least("qpid", "cast", 0.9, "proton"),
    _at_least("qpid", "cast_many", 0.9, "proton"),
    _at_most("fake", "call_seq", 2.0, "queues"),
    _at_least("fake", "call_conc", 0.5, "queues"),
    # Half of what release 0.1.0 needed on the machine where it was measured; elsewhere it moves with the processor.
    Target("rabbit", "call_conc", 85, False, figure="client_cpu_us"),
    Target("rabbit", "call_conc", 85, False, figure="server_cpu_us"),
    *(
        Target(system, "call_seq", 40, False, figure="client_memory_mb")
        for system in ("rabbit", "zmq", "qpid", "nats", "redis")
    ),
    *_asynchronous(),
)
IMPORT_MS = 60.0
"""``import msgbus`` takes at most so many milliseconds."""


def main_cells(cells: list[Cell]) -> list[Cell]:
    """Of the API without asyncio, those that need no library of somebody else's: for a quick run."""
    wanted = {
        (target.system, target.workload, name)
        for target in TARGETS
        for name in (target.row, target.other)
        if target.row == OURS
    }
    return [
        cell
        for cell in cells
        if cell.size == SMALL and cell.row.own is None and (cell.system, cell.workload, cell.row.name) in wanted
    ]
