"""Starts the processes of a measurement, in turns, and gathers what they find."""

import multiprocessing
import statistics
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import wait
from typing import Any, NamedTuple, Self

from benchmarks import children
from benchmarks.base import SUBSCRIBERS, TIMEOUT
from benchmarks.children import Load
from benchmarks.peers import Workloads

WARM_UP = 0.5
"""Seconds of load before it counts."""

Round = dict[str, float]
"""The figures of one measurement, by name."""


class Failed(Exception):
    """A measurement went wrong."""


class Spread(NamedTuple):
    """A figure over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Sum up what the rounds found."""
        return cls(statistics.median(values), min(values), max(values))


class Results:
    """What the rounds found, by workload and peer."""

    def __init__(self) -> None:
        self.rounds: dict[tuple[str, str], list[Round]] = {}

    def add(self, workload: str, peer: str, figures: Round) -> None:
        """Take in a measurement."""
        self.rounds.setdefault((workload, peer), []).append(figures)

    def peers(self, workload: str) -> list[str]:
        """Which were measured."""
        return [peer for name, peer in self.rounds if name == workload]

    def spread(self, workload: str, peer: str, figure: str) -> Spread:
        """A figure over all rounds."""
        return Spread.of([found[figure] for found in self.rounds[workload, peer]])

    def ratio(self, workload: str, figure: str, peer: str) -> Spread:
        """The figure of msgbus divided by that of a peer, which were measured one soon after the other."""
        pairs = zip(self.rounds[workload, "msgbus"], self.rounds[workload, peer], strict=True)
        return Spread.of([ours[figure] / theirs[figure] for ours, theirs in pairs])


class _Child:
    """A process and the pipe to it. Left as a context, it ends."""

    def __init__(self, target: Callable[..., None], *args: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._name = f"the {target.__name__} process of {args[0]}, {args[-1]}"
        self._process = context.Process(target=target, args=(*args, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def answer(self, *others: "_Child", timeout: float = 2 * TIMEOUT) -> Any:
        """Wait for what it says.

        Raises:
            Failed: it or one of `others` has ended, or it says nothing.
        """
        ends = {child._process.sentinel: child for child in (self, *others)}
        ready = wait([self._pipe, *ends], timeout)
        for ended in (child for sentinel, child in ends.items() if sentinel in ready):
            raise Failed(f"{ended._name}, has ended")
        if not ready:
            raise Failed(f"{self._name}, said nothing for {timeout:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            raise Failed(f"{self._name}, has ended") from None

    def ask(self, question: object, *others: "_Child") -> Any:
        """Tell it something, and wait for what it says."""
        try:
            self._pipe.send(question)
        except BrokenPipeError:
            raise Failed(f"{self._name}, has ended") from None
        return self.answer(*others)


def measure(workload: str, peer: str, url: str, seconds: float) -> Round:
    """Measure once.

    Raises:
        Failed: something went wrong; a process has told more on stderr.
    """
    topic = f"bench-{uuid.uuid4().hex}"
    with ExitStack() as stack:
        copies = SUBSCRIBERS if workload == "fanout" else 1
        servers = [stack.enter_context(_Child(children.serve, peer, url, topic, workload)) for _ in range(copies)]
        for server in servers:
            server.answer()
        client = stack.enter_context(_Child(children.drive, peer, url, topic, workload))
        client.answer(*servers)
        counts = workload in ("cast", "fanout")
        warm: Load = client.ask(WARM_UP, *servers)
        if counts:
            for server in servers:
                server.ask(warm.operations, client)
        server_cpu = sum(server.ask("cpu") for server in servers)
        load: Load = client.ask(seconds, *servers)
        if counts:
            took = max(server.ask(warm.operations + load.operations, client) for server in servers) - load.begun
        else:
            took = load.seconds
        server_cpu = sum(server.ask("cpu") for server in servers) - server_cpu
    figures = {
        "per_second": copies * load.operations / took,
        "client_cpu_us": load.cpu / load.operations * 1e6,
        "server_cpu_us": server_cpu / load.operations * 1e6,
    }
    if workload == "call_seq":
        figures["p50_us"] = load.p50 * 1e6
    return figures


def run(workloads: Workloads, url: str, rounds: int, seconds: float, progress: Callable[[str, str], None]) -> Results:
    """Measure each peer in each workload, `rounds` times in turns; tell `progress` before each.

    Raises:
        Failed: see `measure`.
    """
    results = Results()
    for _ in range(rounds):
        for workload, peers in workloads.items():
            for peer in peers:
                progress(workload, peer)
                results.add(workload, peer, measure(workload, peer, url, seconds))
    return results


def count(workloads: Workloads, rounds: int) -> int:
    """How many measurements `run` makes."""
    return rounds * sum(len(peers) for peers in workloads.values())
