"""The results of the checks, gathered by a pytest plugin."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Literal

import msgspec
import pytest

from msgbus.conformance.check import Check, Level

LONGEST_REASON = 500
"""The most characters of the reason of a failure; the details have all of them."""
Outcome = Literal["passed", "failed", "skipped"]


class Result(msgspec.Struct):
    """The result of a check, with all its parameters.

    Attributes:
        check: its name.
        level, since, guarantee: see `Check`.
        outcome: failed if it failed with any parameter, skipped if it was skipped with all.
        reason: why it failed or was skipped, with the first such parameter.
        seconds: how long it took.
        details: what pytest reports about its failures.
    """

    check: str
    level: Level
    since: str
    guarantee: str
    outcome: Outcome = "skipped"
    reason: str = ""
    seconds: float = 0.0
    details: str = ""

    def add(self, report: pytest.TestReport) -> None:
        """Add the report of one parameter, or of its setup or teardown."""
        self.seconds += report.duration
        if report.failed:
            if self.outcome != "failed":
                self.outcome, self.reason = "failed", _first_line(report)
            self.details += f"{report.nodeid.rpartition('::')[2]}\n{report.longreprtext}\n\n"
        elif report.skipped and self.outcome == "skipped":
            assert isinstance(report.longrepr, tuple)
            self.reason = self.reason or report.longrepr[2].removeprefix("Skipped: ")
        elif report.when == "call" and report.passed and self.outcome == "skipped":
            self.outcome, self.reason = "passed", ""


def _first_line(report: pytest.TestReport) -> str:
    """The failure in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longreprtext)
    first, _, more = text.partition("\n")
    if first.removeprefix("AssertionError: ").startswith("assert "):  # The values are below it.
        first = f"{first} {more}"
    return textwrap.shorten(first, LONGEST_REASON, placeholder=" ...")


class Recorder:
    """The plugin.

    Attributes:
        results: class -> name of the check -> result.
        running: the check that is running.
        done: how many have run; a check counts once for each of its parameters.
        total: how many there are to run.
    """

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Result]] = {}
        self.running = ""
        self.done = 0
        self.total = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count what will run."""
        self.total = len(session.items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Note which check is running."""
        self.running = item.name
        try:
            return (yield)
        finally:
            self.done += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """Keep the report of a check."""
        report: pytest.TestReport = yield  # type: ignore[assignment]
        about: Check | None = getattr(getattr(item, "function", None), "check", None)
        if about is not None and isinstance(item, pytest.Function) and item.cls is not None:
            results = self.results.setdefault(item.cls.__qualname__, {})
            result = results.setdefault(about.name, Result(about.name, about.level, about.since, about.guarantee))
            result.add(report)
        return report  # type: ignore[return-value]
