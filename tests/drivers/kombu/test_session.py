"""The connections of the kombu driver come back, whenever they break."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from msgbus.conformance.waiting import until
from tests.support import new_transport


class Peer:
    """Accepts connections, and can break one before its client uses it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.accepted: list[socket.socket] = []
        self.break_next = False

    def connect(self, _host: object, _purpose: str) -> Any:
        """What py-amqp would return."""
        client = socket.create_connection(self._listener.getsockname())
        self.accepted.append(self._listener.accept()[0])
        if self.break_next:
            self.break_next = False
            self.reset()
            until(lambda: self._is_broken(client), "the client's end is broken, too")
        transport = SimpleNamespace(sock=client, close=client.close)
        return SimpleNamespace(transport=transport, frame_max=131072, heartbeat=0)

    @staticmethod
    def _is_broken(client: socket.socket) -> bool:
        try:
            client.getpeername()
        except OSError:
            return True
        return False

    def reset(self) -> None:
        """Break the last connection."""
        self.accepted[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.accepted[-1].close()

    def close(self) -> None:
        for sock in (self._listener, *self.accepted):
            sock.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer, closed at the end."""
    peer = Peer()
    yield peer
    peer.close()


def test_connection_that_breaks_while_it_comes_back_comes_back(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks again before it was used is also opened again."""
    transport = new_transport("rabbit://h")
    driver: Any = transport.driver
    monkeypatch.setattr(driver, "dial", peer.connect)
    line = driver.consuming
    try:
        line.connector.open()
        until(lambda: line.up, "the first connection")
        peer.break_next = True
        peer.reset()
        until(lambda: len(peer.accepted) >= 3 and line.up, "a connection after the broken one")
    finally:
        transport.cleanup()
    assert not line.up
