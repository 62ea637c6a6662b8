#!/usr/bin/env python3
"""Writes index.md, the table of drivers and guarantees, from results/*.json.

The results are what tests with `tests.conformance.documented.Documented` found, run with ``MSGBUS_RECORD=1`` in the
environment.
"""

from __future__ import annotations

import json
import pathlib
import string
import sys

from msgbus.conformance.check import about
from msgbus.conformance.checks import BUS, DRIVER
from msgbus.conformance.suite import BusConformance, DriverConformance

HERE = pathlib.Path(__file__).parent
PAGE = HERE / "index.md"
LEVELS = {
    "The bare driver": (*DRIVER, DriverConformance),
    "The whole bus": (*BUS, BusConformance),
}
HEAD = """\
# What each driver guarantees

Every driver has to pass [the conformance suite](../reference/conformance.md), on a real message system. In the tables
below, each line is a guarantee with the name of its check, and each column is a driver. *yes* means that the check has
passed in the tests of this release. A letter means that the check does not apply to that driver. (This page is
generated from the results of the tests.)
"""
LETTERS = """\
Most letters stand for a [capability](../howto/choose.md#what-the-capabilities-mean) that the driver has or lacks:
"""


def results() -> dict[str, dict[str, str]]:
    """Driver -> check -> its result."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))}


def page() -> str:
    """The text of the page."""
    drivers = results()
    reasons = sorted({outcome for found in drivers.values() for outcome in found.values()} - {"passed"})
    letters = dict(zip(reasons, string.ascii_lowercase, strict=False))
    lines = [HEAD, *_in_short(drivers), LETTERS, *(f"- {letter}: {reason}" for reason, letter in letters.items()), ""]
    for level, classes in LEVELS.items():
        lines += [f"## {level}", "", f"| guarantee | {' | '.join(drivers)} |", f"|---|{'---|' * len(drivers)}"]
        for cls in classes:
            for name in (name for name in vars(cls) if name.startswith("test")):
                check = about(vars(cls)[name])
                cells = ["yes" if found[name] == "passed" else letters[found[name]] for found in drivers.values()]
                lines.append(f"| {check.guarantee} (`{name}`, since {check.since}) | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _in_short(drivers: dict[str, dict[str, str]]) -> list[str]:
    """How many checks each driver has passed."""
    passed = [sum(outcome == "passed" for outcome in found.values()) for found in drivers.values()]
    others = [len(found) - count for found, count in zip(drivers.values(), passed, strict=True)]
    rows = {"passed": passed, "do not apply": others}
    return [
        f"| checks | {' | '.join(drivers)} |",
        f"|---|{'---|' * len(drivers)}",
        *(f"| {name} | {' | '.join(map(str, counts))} |" for name, counts in rows.items()),
        "",
    ]


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE} is written\n")
