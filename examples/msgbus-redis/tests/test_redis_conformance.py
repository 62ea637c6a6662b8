"""The checks that every driver of msgbus has to pass."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import Conformance


class RedisHarness(Harness):
    """A server of the tests' own."""

    def __init__(self, server: Any) -> None:
        self.url = server.url
        self._server = server

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.stop(signal.SIGKILL)

    def cut(self) -> None:
        with self._server.client as client:
            client.client_kill_filter(_type="normal", skipme=True)

    def pause(self) -> None:
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._server.send_signal(signal.SIGCONT)


class TestRedis(Conformance):
    """Every check, with processes of its own."""

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, server: Any) -> Harness:
        return RedisHarness(server)
