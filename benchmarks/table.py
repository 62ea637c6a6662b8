"""Shows results: tables for people, JSON for machines."""

from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.peers import Workloads
from benchmarks.runner import Results, Spread

FIGURES = {
    "call_seq": {"p50_us": "p50 us", "client_cpu_us": "client CPU us", "server_cpu_us": "server CPU us"},
    "call_conc": {"per_second": "calls/s", "client_cpu_us": "client CPU us", "server_cpu_us": "server CPU us"},
    "cast": {"per_second": "casts/s", "client_cpu_us": "client CPU us", "server_cpu_us": "server CPU us"},
    "fanout": {"per_second": "deliveries/s", "client_cpu_us": "client CPU us", "server_cpu_us": "all servers' CPU us"},
}
"""What is shown of each workload; the first figure is the one that is compared."""
TITLES = {
    "call_seq": "call_seq: one caller, one call after another",
    "call_conc": "call_conc: 32 callers",
    "cast": "cast: until the server has processed all",
    "fanout": "fanout: to 8 servers, until each has processed all",
}


class Target(NamedTuple):
    """What the ratio of msgbus to a peer should be."""

    limit: float
    at_least: bool

    def is_met(self, ratio: float) -> bool:
        """Whether `ratio` is good enough."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


TARGETS = {
    ("call_seq", "pyamqp"): Target(1.0, at_least=False),
    ("call_conc", "pyamqp-windowed"): Target(1.6, at_least=True),
    ("cast", "kombu"): Target(1.0, at_least=True),
    ("call_seq", "pyzmq"): Target(1.6, at_least=False),
    ("call_conc", "pyzmq"): Target(0.7, at_least=True),
    ("fanout", "pyzmq-pubsub"): Target(0.3, at_least=True),
    ("call_seq", "proton"): Target(1.3, at_least=False),
    ("call_conc", "proton"): Target(0.9, at_least=True),
    ("cast", "proton"): Target(0.9, at_least=True),
}


class Ratio(NamedTuple):
    """How msgbus compares with a peer."""

    workload: str
    figure: str
    peer: str
    ratio: Spread
    target: Target | None


def ratios(results: Results, workloads: Workloads) -> list[Ratio]:
    """How msgbus compares with each peer, in each workload."""
    return [
        Ratio(workload, figure, peer, results.ratio(workload, figure, peer), TARGETS.get((workload, peer)))
        for workload in workloads
        for figure in [next(iter(FIGURES[workload]))]
        for peer in workloads[workload]
        if peer != "msgbus"
    ]


def show(results: Results, workloads: Workloads, console: Console) -> None:
    """Print tables."""
    for workload in workloads:
        table = Table("peer", title=TITLES[workload], title_justify="left")
        for header in FIGURES[workload].values():
            table.add_column(header, justify="right")
            table.add_column("min - max", justify="right", style="dim")
        for peer in workloads[workload]:
            spreads = (results.spread(workload, peer, figure) for figure in FIGURES[workload])
            table.add_row(peer, *(text for spread in spreads for text in _texts(spread, 0)))
        console.print(table)
    table = Table("workload", "figure", "msgbus to", title="msgbus divided by each peer", title_justify="left")
    table.add_column("ratio", justify="right")
    table.add_column("min - max", justify="right")
    table.add_column("target", justify="right")
    for found in ratios(results, workloads):
        target, colour = "", ""
        if found.target is not None:
            met = found.target.is_met(found.ratio.median)
            target, colour = f"{found.target}, {'met' if met else 'missed'}", "green" if met else "red"
        header = FIGURES[found.workload][found.figure]
        table.add_row(found.workload, header, found.peer, *_texts(found.ratio, 2), target, style=colour)
    console.print(table)
    console.print("Medians over all rounds. CPU is for each operation. Only the ratios say something on their own.")


def _texts(spread: Spread, digits: int) -> tuple[str, str]:
    return f"{spread.median:,.{digits}f}", f"{spread.low:,.{digits}f} - {spread.high:,.{digits}f}"


def as_data(results: Results, workloads: Workloads) -> dict[str, Any]:
    """The same for JSON, with every round."""
    found = {workload: {peer: results.rounds[workload, peer] for peer in workloads[workload]} for workload in workloads}
    compared = [
        {
            "workload": item.workload,
            "figure": item.figure,
            "peer": item.peer,
            **item.ratio._asdict(),
            "target": None if item.target is None else str(item.target),
            "met": None if item.target is None else item.target.is_met(item.ratio.median),
        }
        for item in ratios(results, workloads)
    ]
    return {"rounds": found, "ratios": compared}
