"""What the judges found, in numbers; docs/openstack/generate.py makes a part of a page of them."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import msgspec

from benchmarks import machine
from tests.support import ROOT

RESULTS = ROOT / "docs" / "openstack" / "results"
"""A file for each kind of figures."""
PROPERTY = "openstack"
"""The name of the property of a test's report under which its figures travel."""


class Upstream(msgspec.Struct, tag="upstream"):
    """oslo.messaging's own functional tests over one driver.

    Attributes:
        kind: "threads" or "eventlet".
        again: how many of those that passed did so when they were run for the second time.
        left_out: tests that are not run on this message system, besides those that are not run on any.
    """

    system: str
    driver: str
    kind: str
    passed: int
    again: int
    left_out: dict[str, str]


class Pair(msgspec.Struct, tag="pairs"):
    """A check that a client and a server have passed. `text` says what it is."""

    system: str
    client: str
    server: str
    check: str
    text: str


class Rate(msgspec.Struct, tag="rates"):
    """Calls in a second between a client and a server: one figure for each round, with 1 and with 32 threads."""

    system: str
    client: str
    server: str
    one: list[float]
    many: list[float]


class Load(msgspec.Struct, tag="load"):
    """Calls and casts while something happened again and again.

    Attributes:
        what: "cut" or "restarted".
        times: how often.
        answered, timed_out, slowest, errors: of the calls; see `peer_load.Load.run`.
        casts: that were sent. `lost` are those that no server has run, `twice` those that were run more than once.
    """

    what: str
    system: str
    driver: str
    times: int
    answered: int
    timed_out: int
    slowest: float
    errors: dict[str, int]
    casts: int
    lost: int
    twice: int


class Ironic(msgspec.Struct, tag="ironic"):
    """What Ironic's API was asked for while its two processes used these drivers.

    Attributes:
        steps: what was asked for, and done as it should be.
        connections: how many both processes had open to the broker at the end; None without one.
    """

    system: str
    api: str
    conductor: str
    steps: list[str]
    connections: int | None


Figures = Upstream | Pair | Rate | Load | Ironic


class File(msgspec.Struct):
    """What a run has recorded of one kind of figures.

    Attributes:
        about: what it was made on: name -> text.
    """

    about: dict[str, str]
    found: list[Figures]


Report = Callable[[Figures], None]
"""Lets figures travel with the report of the test that is running."""


def reporter(record_property: Callable[[str, object], None]) -> Report:
    """Make one of pytest's fixture."""

    def report(figures: Figures) -> None:
        record_property(PROPERTY, msgspec.json.encode(figures).decode())

    return report


def reported(reports: Iterable[Any]) -> list[Figures]:
    """The figures of the tests that have passed."""
    return [
        msgspec.json.decode(value, type=Figures)
        for report in reports
        if getattr(report, "when", None) == "call" and report.outcome == "passed"
        for name, value in report.user_properties
        if name == PROPERTY
    ]


def about() -> dict[str, str]:
    """What the figures depend on. To be asked before the run begins."""
    return machine.describe() | {"oslo.messaging": version("oslo.messaging")}


def record(found: list[Figures], made_on: dict[str, str], folder: pathlib.Path = RESULTS) -> None:
    """Keep figures, each kind in the place of all that there were of it: so one run stands behind each table."""
    kinds: dict[str, list[Figures]] = {}
    for it in found:
        kinds.setdefault(kind(it), []).append(it)
    folder.mkdir(parents=True, exist_ok=True)
    for name, of_kind in kinds.items():
        encoded = msgspec.json.encode(File(made_on, of_kind))
        (folder / f"{name}.json").write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")


def kind(figures: Figures) -> str:
    """The kind of figures, which is the name of their file."""
    return str(type(figures).__struct_config__.tag)


def read(name: str, folder: pathlib.Path = RESULTS) -> File | None:
    """What was recorded of a kind; None if nothing was."""
    path = folder / f"{name}.json"
    return msgspec.json.decode(path.read_bytes(), type=File) if path.exists() else None


def is_recorded() -> bool:
    """Whether this run is to be kept for the documentation."""
    return bool(os.environ.get("MSGBUS_RECORD"))


def text(found: list[Figures]) -> str:
    """A line for each of the figures but those of pairs, of which there are many."""
    lines = [msgspec.json.encode(it).decode() for it in found if not isinstance(it, Pair)]
    pairs = sum(isinstance(it, Pair) for it in found)
    return "\n".join([*lines, *([f"{pairs} checks of clients and servers passed"] if pairs else [])])
