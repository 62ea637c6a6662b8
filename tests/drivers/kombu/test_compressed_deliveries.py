"""Compressed messages that a connection to RabbitMQ delivers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from msgbus.drivers.kombu import frames
from msgbus.drivers.kombu.compression import compress
from tests.drivers.kombu.test_session import Peer, Still, delivery

GZIP = "application/x-gzip"
Make = Callable[[str], Still]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a session that does nothing by itself, from a URL."""
    peer = Peer()
    made: list[Still] = []

    def make_still(url: str) -> Still:
        made.append(Still(peer, monkeypatch, url))
        return made[-1]

    yield make_still
    for still in made:
        still.close()
    peer.close()


@pytest.mark.parametrize(
    ("body", "compression", "expected"),
    [
        (compress(b"text", "application/x-gzip"), "application/x-gzip", (b"text", "application/json")),
        (compress(b"text", "application/x-bz2"), "application/x-bz2", (b"text", "application/json")),
        (b"text", "application/x-bz2", (b"text", "application/json (it is compressed as application/x-bz2, and damag")),
        (
            b"text",
            "application/x-lzma",
            (b"text", "application/json (it is compressed as 'application/x-lzma', and "),
        ),
    ],
)
def test_compressed_deliveries(make: Make, body: bytes, compression: str, expected: tuple[bytes, str]) -> None:
    """They are decompressed. One that cannot be is delivered with a content type that says why, for its receiver."""
    still = make("rabbit://h?topology=oslo")
    feed = still.feed(10)
    method = frames.method(feed.number, frames.BASIC_DELIVER, b"\x010" + (1).to_bytes(8, "big") + b"\0\0\0")
    first = frames.publish(method, feed.number, body, "application/json", "id1", 1000, True, 131072, compression)
    still.session._reader.feed(first + delivery(feed.number, 2))
    (_, message), (_, second) = still.delivered
    assert (message.body, message.content_type[: len(expected[1])], message.id) == (*expected, "id1")
    assert (second.body, second.content_type) == (b"body", "application/json")


@pytest.mark.parametrize(("size", "is_read"), [(4096, True), (4097, False)])
def test_a_message_may_become_as_large_as_one_that_is_sent(make: Make, size: int, is_read: bool) -> None:
    """A larger one is for its receiver to refuse: a small body may be made to fill any memory."""
    still = make("rabbit://h?topology=oslo&max_message_size=4096")
    still.session._reader.feed(compressed(still.feed(10).number, bytes(size)))
    ((_, message),) = still.delivered
    assert (message.body == bytes(size)) is is_read
    assert ("would have more than 4096 bytes" in message.content_type) is not is_read


def test_nothing_is_decompressed_with_the_native_topology(make: Make) -> None:
    """Nobody compresses there."""
    still = make("rabbit://h")
    still.session._reader.feed(compressed(still.feed(10).number, b"text"))
    ((_, message),) = still.delivered
    assert (message.body, message.content_type) == (compress(b"text", GZIP), "application/json")


def compressed(channel: int, body: bytes) -> bytes:
    """The frames of a delivery whose body is compressed."""
    method = frames.method(channel, frames.BASIC_DELIVER, b"\x010" + (1).to_bytes(8, "big") + b"\0\0\0")
    return frames.publish(method, channel, compress(body, GZIP), "application/json", "id1", 1000, True, 131072, GZIP)
