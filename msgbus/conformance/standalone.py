"""The suite as a test file of its own, for `msgbus.conformance.run`."""

from __future__ import annotations

import pytest

from msgbus.conformance.harness import Harness, Worlds
from msgbus.conformance.suite import Conformance


class TestConformance(Conformance):
    """All checks."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, given_harness: Harness) -> Harness:
        """The harness that `run` was given."""
        return given_harness

    @pytest.fixture(scope="class")
    @classmethod
    def worlds(cls, given_worlds: Worlds) -> Worlds:
        """The clients and servers that `run` was to use."""
        return given_worlds
