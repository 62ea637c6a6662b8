"""Figures: what a scenario came to, in numbers, for the table and for the page of the documentation."""

from __future__ import annotations

import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from tests.faults.proofs import PROOFS, Record
from tests.faults.workload import AT_LEAST_ONCE, AT_MOST_ONCE

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "reliability" / "results"
"""Where the figures are kept of which docs/reliability/generate.py makes a page: a file for each message system."""
PROPERTY = "faults"
"""The name of the property of a test's report under which its figures travel."""
WIDTH = 160
"""Of the table, in columns."""


class Figures(msgspec.Struct):
    """The result of one scenario on one message system.

    Attributes:
        system, scenario: their names; `title` says what happens in the scenario.
        messages: how many were sent. `returned` is how many of their verbs returned.
        errors: how many of the others raised what.
        faults: how often something was broken.
        hit: how many messages the faults met "before", "during" and "after" their runs; see `Record.hit`.
        broken: for each promise (`PROOFS`) how many messages broke it; those that held are left out.
        repeated: how many messages under at_least_once ran more than once.
        not_kept: how many confirmed casts a message system lost that keeps nothing.
        forgotten: how many messages under at_most_once ran twice since a broker that was killed forgot the first time.
        goes_on: seconds until calls went on; see `Record.goes_on`.
        stalled: the longest time that a client did not get to run.
    """

    system: str
    scenario: str
    title: str
    messages: int
    returned: int
    errors: dict[str, int]
    faults: int
    hit: dict[str, int]
    broken: dict[str, int]
    repeated: int
    not_kept: int
    forgotten: int
    goes_on: float | None
    stalled: float


def judge(record: Record) -> dict[str, list[str]]:
    """For each promise that was broken, a line for each message that broke it."""
    found = {name: proof(record) for name, proof in PROOFS.items()}
    return {name: lines for name, lines in found.items() if lines}


def count(record: Record, system: str, scenario: str, title: str, broken: dict[str, list[str]]) -> Figures:
    """The figures of a scenario, of which `broken` is what `judge` says."""
    messages = record.messages
    errors = Counter(it.outcome.error for it in messages if it.outcome is not None and it.outcome.error)
    goes_on = record.goes_on()
    return Figures(
        system=system,
        scenario=scenario,
        title=title,
        messages=len(messages),
        returned=sum(it.returned for it in messages),
        errors=dict(sorted(errors.items())),
        faults=len(record.faults),
        hit=record.hit(),
        broken={name: len(lines) for name, lines in broken.items()},
        repeated=sum(
            it.sent.policy == AT_LEAST_ONCE and it.sent.verb != "fanout_cast" and len(it.begun) > 1 for it in messages
        ),
        not_kept=len(record.not_kept()),
        forgotten=sum(it.sent.policy == AT_MOST_ONCE and record.forgotten(it) for it in messages),
        goes_on=None if goes_on is None else round(goes_on, 1),
        stalled=round(max((event.seconds for events in record.stalls.values() for event in events), default=0.0), 1),
    )


def table(found: list[Figures]) -> Table:
    """The figures for a person to read."""
    table = Table(title="Faults (hit: messages before/during/after their run; goes on: seconds until calls do)")
    for heading in ("system", "scenario"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "sent",
        "faults",
        "hit before/during/after",
        "errors",
        "twice",
        "not kept",
        "calls go on after",
        "stalled",
    ):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("broken promises")
    for it in sorted(found, key=lambda it: (it.system, it.scenario)):
        table.add_row(
            it.system,
            it.scenario,
            str(it.messages),
            str(it.faults),
            "/".join(map(str, it.hit.values())),
            " ".join(f"{count} {name}" for name, count in it.errors.items()) or "0",
            str(it.repeated),
            str(it.not_kept),
            str(it.forgotten),
            "-" if it.goes_on is None else f"{it.goes_on:.1f} s",
            f"{it.stalled:.1f} s",
            ", ".join(f"{count} {name}" for name, count in it.broken.items()) or "none",
        )
    return table


def reported(reports: Iterable[Any]) -> list[Figures]:
    """The figures that travel with pytest's reports."""
    return [
        msgspec.json.decode(value, type=Figures)
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == PROPERTY
    ]


def text(found: list[Figures]) -> str:
    """The table as text."""
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(table(found))
    return capture.get()


def record(found: list[Figures], folder: pathlib.Path = RESULTS) -> None:
    """Put figures in the place of those of the same scenarios in the files of their message systems."""
    systems: defaultdict[str, list[Figures]] = defaultdict(list)
    for it in found:
        systems[it.system].append(it)
    for system, news in systems.items():
        path = folder / f"{system}.json"
        olds = msgspec.json.decode(path.read_bytes(), type=list[Figures]) if path.exists() else []
        kept = {it.scenario: it for it in [*olds, *news]}
        encoded = msgspec.json.encode([kept[name] for name in sorted(kept)])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
