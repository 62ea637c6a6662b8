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

Each line is a guarantee and the name of the check that proves it, of [the conformance
suite](../reference/conformance.md). Each column is a driver on a real message system. A *yes* means that the check has
passed in the tests of this release; a letter, that it does not apply there; what the letters stand for is below.
Nothing here is written by hand.
"""


def results() -> dict[str, dict[str, str]]:
    """Driver -> check -> its result."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))}


def page() -> str:
    """The text of the page."""
    drivers = results()
    reasons = sorted({outcome for found in drivers.values() for outcome in found.values()} - {"passed"})
    letters = dict(zip(reasons, string.ascii_lowercase, strict=False))
    lines = [HEAD]
    for level, classes in LEVELS.items():
        lines += [f"## {level}", "", f"| guarantee | {' | '.join(drivers)} |", f"|---|{'---|' * len(drivers)}"]
        for cls in classes:
            for name in (name for name in vars(cls) if name.startswith("test")):
                check = about(vars(cls)[name])
                cells = ["yes" if found[name] == "passed" else letters[found[name]] for found in drivers.values()]
                lines.append(f"| {check.guarantee} (`{name}`, since {check.since}) | {' | '.join(cells)} |")
        lines.append("")
    lines += ["## The letters", "", *(f"- {letter}: {reason}" for reason, letter in letters.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE} is written\n")
