#!/usr/bin/env python3
"""Makes figures.md, beside this script, from results/*.json: a part of openstack.md.

The results are what ``tox -e openstack`` has found, run with ``MSGBUS_RECORD=1`` in the environment.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.openstack import load  # noqa: E402
from tests.openstack.figures import (  # noqa: E402  # the checkout is no installed package
    Figures,
    File,
    Ironic,
    Load,
    Pair,
    Rate,
    Upstream,
    read,
)
from tests.openstack.ironic import VERSION  # noqa: E402
from tests.openstack.upstream import LEFT_OUT, LEFT_OUT_MODULES  # noqa: E402

PAGE = HERE / "figures.md"
HEAD = """\
## What was run, and its figures

No line of this section is written by hand: `tox -e openstack` runs all of it, with `MSGBUS_RECORD=1` it keeps what it
finds, and `docs/openstack/generate.py` writes it down. *Stock* is the driver that comes with oslo.messaging, for
`rabbit://`. *msgbus* is the same oslo.messaging with `msgbus+rabbit://`, `msgbus+qpid://` or `msgbus+zmq://`.
"""
UPSTREAM = """\
### oslo.messaging's own functional tests

They come with oslo.messaging and are run unchanged, over each message system, on threads and with eventlet. The table
counts the tests that passed; none failed. Some of them wait for half a second only, in which a busy machine may not get
round to them: one that failed was run again, alone, and is counted as such.
"""
PAIRS = """\
### Clients and servers, on stock and on msgbus

A client and the servers are processes of their own, and each uses stock or msgbus. The table counts what each pair
passed of these checks, and names those that it did not:
"""
RATES = """\
### Calls in a second

One client calls one server, each a process, with a value of a few bytes: the median of the rounds, with the least and
the most. Message system, client and server share one machine, so only ratios say something.
"""
LOADS = """\
### Under load, while something breaks

A client calls with {threads} threads and casts {casts} times in a second, for {seconds:g} s, to {servers} servers with
{server_threads} threads each that take {work:g} ms for each request. Meanwhile all connections to the broker, or
without one those between the client and the servers, are cut every {cut:g} s. In another run, servers end in good
order, one after the other, and a new one takes the place of each. *Timed out* are calls without an answer within
{call_seconds:g} s, *lost* are casts that returned and that no server has run, *ran twice* those that were run more than
once. *Errors* are calls and casts that raised something else.
"""
IRONIC = """\
### Ironic

Ironic {version}, unchanged: its API and its conductor as two processes, without Keystone, with SQLite and its fake
hardware. The API is asked for all of these, one after the other, and each has to be done, or refused, as it should be:
"""
WHAT = {"cut": "connections cut", "restarted": "servers restarted"}


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], words: int) -> list[str]:
    """A table, of which the first columns hold `words`, and the others figures."""
    rule = "|".join(["---"] * words + ["---:"] * (len(headings) - words))
    return [f"| {' | '.join(headings)} |", f"|{rule}|", *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def number(value: float) -> str:
    """A figure of calls in a second."""
    return f"{value:,.0f}"


def rounds(found: list[float]) -> str:
    """The median, with the least and the most."""
    return f"{number(statistics.median(found))} ({number(min(found))} - {number(max(found))})"


def upstream(found: list[Upstream]) -> list[str]:
    """The tests of oslo.messaging."""
    rows = [(it.system, it.driver, it.kind, it.passed, it.again) for it in found]
    lines = [UPSTREAM, *table(("message system", "driver", "run on", "passed", "of these again"), rows, 3)]
    lines += ["Left out, as they do not depend on the driver:", ""]
    lines += [f"- `{name}` {why}." for name, why in (LEFT_OUT_MODULES | LEFT_OUT).items()]
    on = {system: tests for system, tests in ((it.system, it.left_out) for it in found) if tests}
    for system, tests in on.items():
        lines += ["", f"Left out on {system}:", "", *(f"- `{name}`: {why}." for name, why in tests.items())]
    return [*lines, ""]


def pairs(found: list[Pair]) -> list[str]:
    """The checks of clients and servers."""
    passed: dict[tuple[str, str, str], set[str]] = {}
    wanted: dict[str, set[str]] = {}
    for it in found:
        passed.setdefault((it.system, it.client, it.server), set()).add(it.check)
        wanted.setdefault(it.system, set()).add(it.check)
    rows = [
        (*pair, len(checks), ", ".join(sorted(wanted[pair[0]] - checks)) or "none") for pair, checks in passed.items()
    ]
    texts = dict.fromkeys((it.check.partition("[")[0], it.text) for it in found)
    lines = [PAIRS, *(f"- *{check}*: {text}" for check, text in texts), ""]
    return [*lines, *table(("message system", "client", "server", "passed", "not passed"), rows, 3)]


def rates(found: list[Rate]) -> list[str]:
    """Calls in a second."""
    rows = [(it.system, it.client, it.server, rounds(it.one), rounds(it.many)) for it in found]
    return [RATES, *table(("message system", "client", "server", "1 thread", "32 threads"), rows, 3)]


def loads(found: list[Load]) -> list[str]:
    """What happened while something broke."""
    headings = ("what", "message system", "driver", "times", "calls", "timed out", "slowest")
    headings += ("casts", "lost", "ran twice", "errors")
    rows = [
        (
            *(WHAT[it.what], it.system, it.driver, it.times, f"{it.answered + it.timed_out:,}", it.timed_out),
            *(f"{it.slowest:.1f} s", f"{it.casts:,}", it.lost, it.twice, sum(it.errors.values())),
        )
        for it in found
    ]
    text = LOADS.format(
        **{name: load.LOAD[name] for name in ("threads", "casts")},
        seconds=load.SECONDS,
        servers=load.SERVERS,
        server_threads=load.SERVER_THREADS,
        work=1000 * load.LOAD["work"],
        cut=load.CUT_EVERY,
        call_seconds=load.CALL_SECONDS,
    )
    return [text, *table(headings, rows, 3)]


def ironic(found: list[Ironic]) -> list[str]:
    """What Ironic was asked for."""
    steps = dict.fromkeys(step for it in found for step in it.steps)
    rows = [
        (it.system, it.api, it.conductor, len(it.steps), "-" if it.connections is None else it.connections)
        for it in found
    ]
    headings = ("message system", "API", "conductor", "done", "connections to the broker")
    return [IRONIC.format(version=VERSION), *(f"- {step}" for step in steps), "", *table(headings, rows, 3)]


KINDS: dict[str, Callable[[list[Figures]], list[str]]] = {
    "upstream": upstream,  # type: ignore[dict-item]  # each file holds figures of one kind
    "pairs": pairs,  # type: ignore[dict-item]
    "rates": rates,  # type: ignore[dict-item]
    "load": loads,  # type: ignore[dict-item]
    "ironic": ironic,  # type: ignore[dict-item]
}


def made_on(files: Iterable[File]) -> list[str]:
    """What the runs were made on: for each of them, once."""
    texts = dict.fromkeys("; ".join(f"{name}: {text}" for name, text in file.about.items()) for file in files)
    return ["### What it was made on", "", *(f"- {text}" for text in texts), ""]


def page() -> str:
    """The text of the section."""
    files = {name: file for name in KINDS if (file := read(name)) is not None}
    lines = [HEAD]
    for name, file in files.items():
        lines += KINDS[name](file.found)
    return "\n".join([*lines, *(made_on(files.values()) if files else ["No run has been recorded yet.", ""])])


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE} is written\n")
