"""The conformance suite on the driver `fake`."""

from __future__ import annotations

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.fake import FakeHarness
from msgbus.conformance.suite import Conformance
from tests.conformance.documented import Documented


class TestFake(Documented, Conformance):
    """Every check, in this process."""

    column = "fake"

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Harness:
        return FakeHarness()
