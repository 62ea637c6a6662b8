"""Figures: what a scenario came to, in numbers, for the table and for the page of the documentation."""

from __future__ import annotations

from collections import Counter

import msgspec
from rich.table import Table

from tests.faults.proofs import PROOFS, Record
from tests.faults.workload import AT_LEAST_ONCE


class Figures(msgspec.Struct):
    """What came of one scenario on one message system.

    Attributes:
        system, scenario: their names.
        messages: how many were sent. `returned` is how many of their verbs returned.
        errors: how many of the others raised what.
        faults: how often something was broken.
        broken: for each promise (`PROOFS`) how many messages broke it; those that held are left out.
        repeated: how many messages under at_least_once ran more than once.
        not_kept: how many confirmed casts a message system lost that keeps nothing.
        goes_on: seconds until calls went on; see `Record.goes_on`.
        stalled: the longest time that a client did not get to run.
    """

    system: str
    scenario: str
    messages: int
    returned: int
    errors: dict[str, int]
    faults: int
    broken: dict[str, int]
    repeated: int
    not_kept: int
    goes_on: float | None
    stalled: float


def judge(record: Record) -> dict[str, list[str]]:
    """For each promise that was broken, a line for each message that broke it."""
    found = {name: proof(record) for name, proof in PROOFS.items()}
    return {name: lines for name, lines in found.items() if lines}


def count(record: Record, system: str, scenario: str, broken: dict[str, list[str]]) -> Figures:
    """The figures of a scenario."""
    messages = record.messages
    errors = Counter(it.outcome.error for it in messages if it.outcome is not None and it.outcome.error)
    goes_on = record.goes_on()
    return Figures(
        system=system,
        scenario=scenario,
        messages=len(messages),
        returned=sum(it.returned for it in messages),
        errors=dict(sorted(errors.items())),
        faults=len(record.faults),
        broken={name: len(lines) for name, lines in broken.items()},
        repeated=sum(
            it.sent.policy == AT_LEAST_ONCE and it.sent.verb != "fanout_cast" and len(it.begun) > 1 for it in messages
        ),
        not_kept=len(record.not_kept()),
        goes_on=None if goes_on is None else round(goes_on, 1),
        stalled=round(max((event.seconds for events in record.stalls.values() for event in events), default=0.0), 1),
    )


def table(found: list[Figures]) -> Table:
    """The figures for a person to read."""
    table = Table(title="Faults")
    for heading in ("system", "scenario"):
        table.add_column(heading)
    for heading in ("sent", "faults", "errors", "twice", "not kept", "calls go on after", "stalled"):
        table.add_column(heading, justify="right")
    table.add_column("broken promises")
    for it in sorted(found, key=lambda it: (it.system, it.scenario)):
        table.add_row(
            it.system,
            it.scenario,
            str(it.messages),
            str(it.faults),
            " ".join(f"{count} {name}" for name, count in it.errors.items()) or "0",
            str(it.repeated),
            str(it.not_kept),
            "-" if it.goes_on is None else f"{it.goes_on:.1f} s",
            f"{it.stalled:.1f} s",
            ", ".join(f"{count} {name}" for name, count in it.broken.items()) or "none",
        )
    return table
