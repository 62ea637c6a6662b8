"""The checks that every driver of msgbus has to pass."""

from __future__ import annotations

import pytest
from msgbus_newdriver.driver import system_at

from msgbus.conformance import Harness
from msgbus.conformance.suite import Conformance


class NewdriverHarness(Harness):
    """What the checks know of the broker. The more it can do (kill, pause, partition), the more is checked."""

    url = "newdriver://localhost:7070/conformance"
    processes = False  # Remove this line once several processes can meet there.

    def __init__(self) -> None:
        self._system = system_at("newdriver at localhost:7070/conformance")

    def cut(self) -> None:
        self._system.cut()

    def stop(self) -> None:
        self._system.up = False
        self._system.cut()

    def start(self) -> None:
        self._system.up = True


class TestNewdriver(Conformance):
    """Every check."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Harness:
        return NewdriverHarness()
