"""The checks that every driver of msgbus has to pass."""

from __future__ import annotations

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import Conformance


class NewdriverHarness(Harness):
    """What the checks know of the message system. The more it can do (stop, start, kill, cut), the more is checked."""

    url = "newdriver://conformance/"
    processes = False  # Remove this line once several processes can meet there.


class TestNewdriver(Conformance):
    """Every check."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Harness:
        return NewdriverHarness()
