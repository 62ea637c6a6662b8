"""Fixtures of the tests for notifications."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import msgbus
from tests.support import new_transport


@pytest.fixture
def transport() -> Iterator[msgbus.Transport]:
    """A transport in memory."""
    made = new_transport()
    yield made
    made.cleanup()


@pytest.fixture
def notifier(transport: msgbus.Transport) -> msgbus.Notifier:
    """A notifier that sends messages."""
    return msgbus.Notifier(transport, "orders.host1", driver="messagingv2")
