#!/usr/bin/env python3
"""Makes reliability.md, beside this folder, from results/*.json.

The results are what the scenarios of tests/faults came to, run with ``MSGBUS_RECORD=1`` in the environment.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent / "reliability.md"
HEAD = """\
# What happens when things fail

[Guarantees](explanation/guarantees.md) says what msgbus promises. This page shows what happened when something was
broken on purpose, on real message systems. It is generated: `tox -e faults` measures, and
`docs/reliability/generate.py` writes the page.

## How it is measured

Clients and servers are separate processes, each with its own connection to the message system. Every process records
what happens to each message: that it was sent, that a server began it, that the server finished it, and what its caller
got. Each record is written before the process continues, so that it exists even if the process is killed right
afterwards. Meanwhile something is broken on purpose. At the end the records are compared with the promises, message by
message. The columns count:

- *sent*: calls, casts, fanout casts and streams (`multicall`).
- *hit*: how many messages were affected before, during and after they ran: sent and not begun; begun by the server
  that was hit, or by any server if something else was hit; finished, but the caller did not know it yet.
- *errors*: messages that ended with an error of msgbus instead of a value or a confirmation. Most are under
  `at_most_once`, where *it may have run* is a valid answer. Under `at_least_once` only errors that the scenario makes
  unavoidable are allowed: others count as *other*.
- *lost*: casts under `at_least_once` that were confirmed and that no server has finished; calls with another value than
  their own.
- *doubled*: messages under `at_most_once` that were begun twice; casts under `at_least_once` that one server process
  has run twice.
- *late*: verbs that ended more than 1 s after their deadline, or never. Time in which the caller's process did not get
  to run is not counted.
- *other*: every other broken promise: an error that is not one of msgbus's, or is wrong; a call under
  `at_least_once` that failed; a fanout cast that did not reach a server which was connected all the time.
- *ran twice*: messages under `at_least_once` that were begun more than once, on several servers or because the caller
  asked again, which is allowed.
- *not kept*: confirmed casts that were lost with a message system that keeps nothing when it ends.
- *forgotten*: messages under `at_most_once` that ran twice because a broker that was killed had forgotten what
  happened in its last second, which [cannot be avoided](explanation/guarantees.md#what-cannot-be-promised).
- *calls go on after*: seconds from the fault, or from its end where it has one, until every client had the answer to a
  call that it made afterwards. Servers that are busy with earlier requests make that longer.
"""
COUNTED = {
    "lost": ("lost", "wrong", "made up"),
    "doubled": ("doubled", "run again"),
    "late": ("late", "hung"),
    "other": ("foreign", "untrue", "failed", "not everywhere"),
}
"""Column -> the promises that are counted in it."""
HEADINGS = (
    "what is broken",
    "sent",
    "hit",
    "errors",
    *COUNTED,
    "ran twice",
    "not kept",
    "forgotten",
    "calls go on after",
)


def results() -> dict[str, list[dict[str, Any]]]:
    """Message system -> the figures of its scenarios."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))}


def row(figures: dict[str, Any]) -> str:
    """One scenario."""
    goes_on = figures["goes_on"]
    cells = [
        figures["title"],
        figures["messages"],
        " / ".join(map(str, figures["hit"].values())),
        sum(figures["errors"].values()),
        *(sum(figures["broken"].get(name, 0) for name in names) for names in COUNTED.values()),
        figures["repeated"],
        figures["not_kept"],
        figures["forgotten"],
        "" if goes_on is None else f"{goes_on:.1f} s",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def page() -> str:
    """The text of the page."""
    lines = [HEAD]
    for system, found in results().items():
        messages, faults = (sum(it[name] for it in found) for name in ("messages", "faults"))
        lines += [
            f"## {system}",
            "",
            f"{messages:,} messages, {faults} faults.",
            "",
            f"| {' | '.join(HEADINGS)} |",
            f"|---|{'---:|' * (len(HEADINGS) - 1)}",
            *map(row, found),
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE} is written\n")
