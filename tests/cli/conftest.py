"""Fixtures of the tests of commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.described import Bus


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """A bus in memory, whose servers end with the test."""
    monkeypatch.delenv("MSGBUS_URL", raising=False)
    made = Bus()
    yield made
    for server in made.servers:
        server.stop()
        server.wait(20)
    made.transport.cleanup()
