"""The conformance suite itself: what it says of its checks. What it notices: functional/test_conformance_mutants.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import pytest

from msgbus.conformance.check import Check, about
from msgbus.conformance.checks import BUS, DRIVER
from msgbus.conformance.harness import Harness
from msgbus.conformance.suite import BusConformance, Conformance, DriverConformance


def checks(*classes: type) -> Iterator[Check]:
    """The checks that classes define themselves, in the order in which they are run."""
    for cls in classes:
        for name, func in vars(cls).items():
            if name.startswith("test"):
                yield about(func)


ALL = [*checks(*DRIVER, DriverConformance), *checks(*BUS, BusConformance)]


def test_every_check_is_run() -> None:
    """None hides another of the same name, and all are in the suite."""
    names = [check.name for check in ALL]
    assert len(names) == len(set(names))
    assert set(names) == {name for name in dir(Conformance) if name.startswith("test")}


def test_each_check_is_of_one_level() -> None:
    """The class of a level has the checks of that level, and no others."""
    for cls, level in ((DriverConformance, "driver"), (BusConformance, "bus")):
        found = [about(getattr(cls, name)) for name in dir(cls) if name.startswith("test")]
        assert {check.level for check in found} == {level}
        assert {check.name for check in found} == {check.name for check in ALL if check.level == level}


def test_every_check_names_its_first_version() -> None:
    """The version is one of msgbus's."""
    for check in ALL:
        assert re.fullmatch(r"\d+\.\d+", check.since), check.name
        assert check.guarantee.endswith((".", ":")), check.name


def test_every_guarantee_says_what_it_is_about() -> None:
    """It is read in a table, without its check: so it does not begin with a pronoun."""
    first = {check.name: check.guarantee.split()[0] for check in ALL}
    assert {name: word for name, word in first.items() if word in ("Also", "It", "Its", "Their", "They", "Those")} == {}


def test_checks_build_on_earlier_ones() -> None:
    """What a check takes for granted is checked before it."""
    names = [check.name for check in ALL]
    for at, check in enumerate(ALL):
        for ground in check.builds_on:
            assert ground in names[:at], f"{check.name} builds on {ground}"
            assert not check.ground_of or next(one for one in ALL if one.name == ground).ground_of
        for level in check.ground_of:
            assert all(other.ground_of or other.level != level for other in ALL[:at] if level == "bus")


def test_faults_are_methods_of_the_harness() -> None:
    """A check asks for what a harness may have, by name."""
    for check in ALL:
        for name in check.harness:
            assert inspect.isfunction(getattr(Harness, name)), check.name
            assert not Harness().can(name)


def test_a_check_needs_a_guarantee() -> None:
    """A check without a docstring is refused."""
    from msgbus.conformance.check import check

    with pytest.raises(AssertionError, match="states its guarantee"):

        @check("driver", since="0.1")
        def test_nothing(self: object, bus: object) -> None:
            pass
