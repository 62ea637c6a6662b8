"""Conformance: all checks in one class."""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("msgbus.conformance.checks", "msgbus.conformance.bus", "msgbus.conformance.waiting")

from msgbus.conformance.bus import Bus  # noqa: E402  # after the line above, so that its asserts say more
from msgbus.conformance.checks import ALL  # noqa: E402
from msgbus.conformance.harness import Harness  # noqa: E402
from msgbus.conformance.waiting import until  # noqa: E402


class Conformance(*ALL):  # type: ignore[misc]  # the classes are listed in one place
    """Subclass it in a test file, name the subclass ``Test...``, and give it a class-scoped fixture ``harness``."""

    def test_no_check_hides_another(self) -> None:
        """Every check of every part has a name of its own, and runs."""
        names = [name for part in ALL for name in vars(part) if name.startswith("test")]
        assert sorted(names) == sorted(set(names))

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Harness:
        """The driver's harness."""
        raise NotImplementedError("give the class a fixture 'harness', with scope='class'")

    @pytest.fixture
    def bus(self, harness: Harness, tmp_path: pathlib.Path) -> Iterator[Bus]:
        """The message system, and all that a check opens on it. Nothing of it may be left behind."""
        before = _Census(harness)
        bus = Bus(harness, tmp_path)
        try:
            yield bus
        finally:
            bus.close()
        before.compare(broker=not bus.killed)


class _Census:
    """What a check may leave behind: threads, file descriptors, and things on the message system."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._leftovers = harness.leftovers()
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()

    def compare(self, *, broker: bool) -> None:
        """Fail where there is more now than there was."""
        until(lambda: not self._new_threads(), "the end of all threads that the check started")
        more = "file descriptors are left open"
        until(lambda: len(_descriptors()) <= len(self._descriptors), more, 5)
        if broker:
            until(lambda: not self._harness.leftovers() - self._leftovers, "nothing is left on the message system")

    def _new_threads(self) -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread not in self._threads}


def _descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")
