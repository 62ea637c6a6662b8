"""Errors while a connection to RabbitMQ reads: no message is acknowledged unread, and nothing is skipped."""

from __future__ import annotations

from typing import Any

import pytest

from msgbus.conformance.waiting import until
from msgbus.drivers.kombu import frames, reading
from msgbus.drivers.toolkit.consuming import Outcome
from tests.drivers.kombu.test_session import Still, Unsettled, delivery


@pytest.mark.parametrize("frame_max", [131072, 1000])
def test_what_could_not_be_read_is_rejected(
    still: Still, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, frame_max: int
) -> None:
    """In one frame or in several. One acknowledgement of several that come after it does not cover it."""
    feed, broker = still.feed(100), Unsettled()
    make, gather = vars(reading)["Message"], vars(reading)["message_of"]

    def made(body: bytes, *rest: Any) -> Any:
        if body.startswith(b"large"):
            raise MemoryError
        return make(body, *rest)

    def gathered(body: bytes, *rest: Any) -> Any:
        if body.startswith(b"large"):
            raise MemoryError
        return gather(body, *rest)

    monkeypatch.setattr(reading, "Message", made)
    monkeypatch.setattr(reading, "message_of", gathered)
    still.read(feed, 1)
    still.session._reader.feed(delivery(feed.number, 2, b"large" * 1000, frame_max))
    still.read(feed, 3, 4)
    broker.tags = [1, 2, 3, 4]
    assert [tag for tag, _ in still.delivered] == [1, 3, 4]
    for tag in (1, 3, 4):
        assert feed.settle(tag, Outcome.ACCEPT)
    still.session.send_all()
    broker.read(still.payloads())
    assert broker.told == {1: Outcome.ACCEPT, 2: Outcome.DROP, 3: Outcome.ACCEPT, 4: Outcome.ACCEPT}
    assert "queue 'q', could not be read, and is rejected" in caplog.text


def test_an_error_in_handling_a_frame_ends_the_connection(
    still: Still, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The frames behind it are not handled; RabbitMQ gives what was unsettled to the next connection."""
    feed = still.feed(100)

    def fail(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(feed, "on_method", fail)
    session: Any = still.session
    still._socket.sendall(frames.method(feed.number, frames.BASIC_CONSUME_OK, b"\x010") + delivery(feed.number, 1))

    def is_lost() -> bool:
        session._on_event()
        return not session.is_open

    until(is_lost, "the end of the connection")
    assert still.delivered == []
    assert "no room" in str(session.line.connector.error)
    assert any(record.exc_info for record in caplog.records)
