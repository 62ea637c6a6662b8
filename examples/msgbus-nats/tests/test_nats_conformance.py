"""The checks that every driver of msgbus has to pass."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import Conformance


class NatsHarness(Harness):
    """A server of the tests' own."""

    largest = 8 * 1024 * 1024 - 1024  # the server's max_payload, less what the driver keeps for headers

    def __init__(self, server: Any) -> None:
        self.url = server.url
        self._server = server

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.stop(signal.SIGKILL)


class TestNats(Conformance):
    """Every check, with processes of its own."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, server: Any) -> Harness:
        return NatsHarness(server)
