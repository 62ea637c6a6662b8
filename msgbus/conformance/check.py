"""Checks: what the suite knows about each, and what the checks of a run have found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

import pytest

from msgbus.conformance.harness import Harness
from msgbus.conformance.waiting import Task
from msgbus.drivers.base import Capability

Level = Literal["driver", "bus"]
Fault = Literal["stop", "start", "kill", "cut", "pause", "resume", "partition", "heal"]
"""What a harness may be able to do: a method of `Harness`."""

F = TypeVar("F", bound=Callable[..., None])


class Check(NamedTuple):
    """A check of the suite.

    Attributes:
        name: the name of its test function. The docstring of that is the guarantee.
        level: what it tests: the bare driver, through its contract, or the whole bus, through clients and servers.
        since: the version of msgbus in which it first appeared.
        needs: capabilities that the driver has to declare for this check to apply.
        lacks: capabilities that the driver must not declare for this check to apply.
        harness: what the harness has to be able to do.
        processes: whether it needs several processes.
        ground_of: levels whose checks all build on it, except those that are the ground of as many levels.
        builds_on: names of further checks whose guarantees it relies on. It is skipped if one of them has failed, so
            that a fault is reported once, by the check that is about it.
        guarantee: what it promises, in one line.
    """

    name: str
    level: Level
    since: str
    needs: tuple[Capability, ...]
    lacks: tuple[Capability, ...]
    harness: tuple[Fault, ...]
    processes: bool
    ground_of: tuple[Level, ...]
    builds_on: tuple[str, ...]
    guarantee: str

    def why_not(self, capabilities: Collection[Capability], harness: Harness) -> str | None:
        """Why it cannot run with a driver of these capabilities and on this harness's message system, or None."""
        if missing := [capability.value for capability in self.needs if capability not in capabilities]:
            return f"the driver does not declare {', '.join(missing)}"
        if declared := [capability.value for capability in self.lacks if capability in capabilities]:
            return f"the driver declares {', '.join(declared)}"
        if unable := [name for name in self.harness if not harness.can(name)]:
            return f"the harness cannot {', '.join(unable)}"
        if self.processes and not harness.processes:
            return "the message system lives in one process"
        return None


class Findings:
    """What the checks of one run have found so far.

    Attributes:
        left: check -> what it has left behind.
        tasks: name of a check that was begun before its turn -> its task.
        leftovers: what the harness reported before these were begun.
    """

    def __init__(self) -> None:
        self.left: dict[Check, str] = {}
        self.tasks: dict[str, Task] = {}
        self.leftovers: set[str] = set()
        self._not_kept: dict[str, Check] = {}

    def failed_ground_of(self, about: Check) -> str | None:
        """The name of a check that it builds on and that has not passed, or None."""
        for name, failed in self._not_kept.items():
            beneath = about.level in failed.ground_of and not set(failed.ground_of) <= set(about.ground_of)
            if beneath or name in about.builds_on:
                return name
        return None

    def note_failure(self, about: Check) -> None:
        """Remember that a guarantee does not hold, or could not be checked."""
        self._not_kept[about.name] = about


class CheckedBus(Protocol):
    """What `check` needs of a `Bus`, whose module imports this one."""

    harness: Harness
    findings: Findings
    capabilities: frozenset[Capability]


def check(
    level: Level,
    *,
    since: str,
    needs: tuple[Capability, ...] = (),
    lacks: tuple[Capability, ...] = (),
    harness: tuple[Fault, ...] = (),
    processes: bool = False,
    ground_of: tuple[Level, ...] = (),
    builds_on: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """Make a method a check; the arguments are those of `Check`. It is skipped, with a reason, if it does not apply."""

    def make(func: F) -> F:
        assert func.__doc__, f"{func.__name__}: a check states its guarantee"
        guarantee = " ".join(func.__doc__.split("\n\n")[0].split())
        about = Check(func.__name__, level, since, needs, lacks, harness, processes, ground_of, builds_on, guarantee)

        @functools.wraps(func)
        def judge(self: Any, bus: CheckedBus, **arguments: Any) -> None:
            __tracebackhide__ = True
            if reason := about.why_not(bus.capabilities, bus.harness):
                pytest.skip(reason)
            if cause := bus.findings.failed_ground_of(about):
                bus.findings.note_failure(about)
                pytest.skip(f"skipped: it builds on {cause}, which has failed")
            try:
                func(self, bus, **arguments)
            except pytest.skip.Exception:
                raise
            except BaseException:  # pytest's own are not subclasses of Exception
                bus.findings.note_failure(about)
                raise

        judge.check = about  # type: ignore[attr-defined]
        return cast(F, judge)

    return make


def about(func: Any) -> Check:
    """The `Check` of a function or method."""
    return cast(Check, func.check)
