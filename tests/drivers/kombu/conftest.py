"""What the tests of the kombu driver share: the other end of a connection, and a session to it that a test drives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drivers.kombu.test_session import Peer, Still


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer, closed at the end."""
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def still(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Still]:
    """A session that does nothing by itself."""
    still = Still(peer, monkeypatch)
    yield still
    still.close()
