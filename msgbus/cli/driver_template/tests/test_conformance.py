"""The conformance suite of msgbus on this driver. New checks come with new versions of msgbus."""

from __future__ import annotations

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import Conformance


class MymqHarness(Harness):
    """What the suite has to know of mymq, and can have done to it. The more methods it has, the more is checked."""

    url = "mymq://localhost/"
    processes = False  # It lives in one process so far. Remove this line when several can share it.


class TestMymq(Conformance):
    """Every check."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Harness:
        return MymqHarness()
