"""What the suite knows of each check, and what came of it."""

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
    """About a check.

    Attributes:
        name: of its test function. Its docstring is the guarantee.
        level: what it looks at: the bare driver, through its contract alone, or the whole bus, through clients and
            servers.
        since: the version of msgbus that brought it.
        needs: capabilities that the driver has to declare, else there is nothing to check.
        lacks: capabilities without which it has to be. For what a driver owes that does not declare them.
        harness: what the harness has to be able to do.
        processes: it takes several processes.
        ground_of: levels all of whose checks build on it, but for those that are the ground of as many levels.
        builds_on: names of further checks whose guarantees it takes for granted. Where one of them has failed, it is
            not judged: one fault is told once, by the checks that name it.
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
        tasks: name of a check -> it, where it was begun before its turn.
        leftovers: what the harness told of before these were begun.
    """

    def __init__(self) -> None:
        self.left: dict[Check, str] = {}
        self.tasks: dict[str, Task] = {}
        self.leftovers: set[str] = set()
        self._not_kept: dict[str, Check] = {}

    def shaken(self, about: Check) -> str | None:
        """The name of a check that it builds on and that has not passed, or None."""
        for name, failed in self._not_kept.items():
            beneath = about.level in failed.ground_of and not set(failed.ground_of) <= set(about.ground_of)
            if beneath or name in about.builds_on:
                return name
        return None

    def note_failure(self, about: Check) -> None:
        """Remember that a guarantee does not hold, or cannot be judged."""
        self._not_kept[about.name] = about


class CheckedBus(Protocol):
    """What `check` needs of a `Bus`, which is made of what stands here."""

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
    """Make a method a check; the arguments are those of `Check`. Where it does not fit it is skipped, and says why."""

    def make(func: F) -> F:
        assert func.__doc__, f"{func.__name__}: a check states its guarantee"
        guarantee = " ".join(func.__doc__.split("\n\n")[0].split())
        about = Check(func.__name__, level, since, needs, lacks, harness, processes, ground_of, builds_on, guarantee)

        @functools.wraps(func)
        def judge(self: Any, bus: CheckedBus, **arguments: Any) -> None:
            __tracebackhide__ = True
            if reason := about.why_not(bus.capabilities, bus.harness):
                pytest.skip(reason)
            if cause := bus.findings.shaken(about):
                bus.findings.note_failure(about)
                pytest.skip(f"not judged: it builds on {cause}, which does not hold")
            try:
                func(self, bus, **arguments)
            except pytest.skip.Exception:
                raise
            except BaseException:  # what pytest itself raises is no Exception
                bus.findings.note_failure(about)
                raise

        judge.check = about  # type: ignore[attr-defined]
        return cast(F, judge)

    return make


def about(func: Any) -> Check:
    """What is known of a check, given its function or method."""
    return cast(Check, func.check)
