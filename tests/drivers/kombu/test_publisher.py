"""When a sender leaves a RabbitMQ that has stopped answering."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from amqp.serialization import dumps

from msgbus.drivers.base import Address
from msgbus.drivers.kombu import frames
from msgbus.drivers.kombu.channel import Channel
from msgbus.drivers.kombu.publisher import CLASSIC_TIMEOUT, RENEW_PAUSE, RENEW_WAIT, STALL_TIMEOUT, Publisher
from msgbus.drivers.kombu.topology import NativeTopology
from tests.drivers.kombu.test_session import Peer, Still

SHARED = Address("topic", "msgbus", "t")
STORED = Address("stored", "msgbus", "t")


class Wire:
    """A connection of which a test is the other end."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.hindered_at = 0.0
        self.loop = SimpleNamespace(now=lambda: self.seconds)
        self.line = SimpleNamespace(sendable=self._set_sendable)
        self.is_sendable = False
        self.frame_max = 131072
        self.is_open = True
        self.channels: list[Channel] = []
        self.has_channels = True
        self.moves: list[str] = []

    def _set_sendable(self, is_sendable: bool = True) -> None:
        self.is_sendable = is_sendable

    def name(self) -> str:
        return "RabbitMQ"

    def add(self, channel: Channel) -> None:
        self.channels.append(channel)

    def add_soon(self, channel: Channel, begin: Callable[[], None]) -> None:
        if self.has_channels:
            self.add(channel)
            begin()

    def remove_channel(self, channel: Channel) -> None:
        self.channels.remove(channel)

    def write(self, data: bytes) -> None:
        """Nothing of it matters here."""

    def move(self, reason: str, *, pause: float = 0.0) -> None:
        self.moves.append(reason)


class Sending:
    """A publisher with its channel open, on a `Wire`."""

    def __init__(self, *, quorum: bool = False) -> None:
        self.wire = Wire()
        topology = NativeTopology(quorum=quorum, server_expires=0, queue_expires=0)
        self.publisher = Publisher(cast("Any", self.wire), topology.route, cast("Any", None))
        self.publisher.open()
        self.publisher.on_method(frames.CONFIRM_SELECT_OK, b"", 0, 0)
        self.declared: list[tuple[object, bool]] = []

    def declare(self, address: Address) -> None:
        self.publisher.declare(address, lambda refusal=None, *, hold=False: self.declared.append((refusal, hold)))

    def can_send(self) -> bool:
        """Whether messages are passed on to it."""
        return self.wire.is_sendable

    def tick(self, seconds: float) -> None:
        """Have so many seconds pass."""
        self.wire.seconds += seconds
        self.publisher.on_tick(self.wire.seconds)

    def moved_after(self, seconds: float) -> bool:
        """Whether it leaves RabbitMQ when so many seconds have passed."""
        self.tick(seconds)
        return bool(self.wire.moves)


@pytest.mark.parametrize(
    ("address", "quorum", "limit"),
    [(SHARED, False, STALL_TIMEOUT), (STORED, True, STALL_TIMEOUT), (STORED, False, CLASSIC_TIMEOUT)],
)
def test_a_declaration_that_is_not_answered(address: Address, quorum: bool, limit: float) -> None:
    """It is not waited for without end: the next host is tried. A classic queue has longer, as its node may be down."""
    sending = Sending(quorum=quorum)
    sending.wire.seconds += 3600
    sending.declare(address)
    assert not sending.moved_after(limit - 0.125)
    assert sending.moved_after(0.125)
    what = "queue msgbus/t" if address is STORED else "exchange msgbus"
    assert f"has not declared {what} for" in sending.wire.moves[0]


def test_a_declaration_that_is_answered() -> None:
    """It is not waited for any more."""
    sending = Sending()
    sending.declare(SHARED)
    assert not sending.moved_after(STALL_TIMEOUT - 0.125)
    sending.wire.channels[-1].on_method(frames.EXCHANGE_DECLARE_OK, b"", 0, 0)
    assert sending.declared == [(None, False)]
    assert not sending.moved_after(3600)


@pytest.mark.parametrize(
    ("code", "text", "may_end"),
    [
        (541, "INTERNAL_ERROR - Cannot declare a queue 'queue 'msgbus/t' in vhost '/'' on node 'a': noproc", True),
        (404, "NOT_FOUND - home node 'a' of durable queue 'msgbus/t' in vhost '/' is down or inaccessible", True),
        (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'msgbus/t' in vhost '/'", True),
        (403, "ACCESS_REFUSED - configure access to queue 'msgbus/t' in vhost '/' refused for user 'u'", False),
        (406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'msgbus/t' in vhost '/'", False),
    ],
)
def test_a_declaration_that_is_refused(code: int, text: str, may_end: bool) -> None:
    """Messages wait where that may end by itself, such as when a cluster loses a node. Else they fail at once."""
    sending = Sending(quorum=True)
    sending.declare(STORED)
    closing = dumps("BsBB", (code, text, 0, 0))
    sending.wire.channels[-1].on_method(frames.CHANNEL_CLOSE, closing, 0, len(closing))
    ((refusal, hold),) = sending.declared
    assert text in str(refusal)
    assert hold is may_end


@pytest.mark.parametrize("waits_for", ["a confirm", "a declaration", "a channel"])
def test_rabbitmq_is_kept_from_answering(waits_for: str) -> None:
    """By a slow network, or an alarm. It does not count as silent, and has as long as always afterwards."""
    sending = Sending()
    if waits_for == "a confirm":
        unconfirmed: Any = SimpleNamespace(sent=Future())
        sending.publisher._in_flight[1] = unconfirmed
    elif waits_for == "a declaration":
        sending.declare(SHARED)
    else:
        sending.publisher.open()
    sending.wire.hindered_at = sending.wire.seconds + 10
    assert not sending.moved_after(10 + STALL_TIMEOUT - 0.125)
    assert sending.moved_after(0.125)


def test_a_declaration_that_waits_for_a_channel() -> None:
    """RabbitMQ does not know of it yet. But it may not wait for the answers to other questions without end, either."""
    sending = Sending()
    sending.wire.has_channels = False
    sending.declare(SHARED)
    assert not sending.moved_after(CLASSIC_TIMEOUT - 0.125)
    assert sending.moved_after(0.125)


def test_a_channel_that_is_reopened() -> None:
    """RabbitMQ has as long for that as for an answer, however long ago the channel was opened."""
    sending = Sending()
    sending.wire.seconds += 3600
    sending.publisher._renew()
    assert not sending.moved_after(STALL_TIMEOUT - 0.125)
    sending.publisher.on_method(frames.CHANNEL_CLOSE_OK, b"", 0, 0)
    assert not sending.moved_after(STALL_TIMEOUT - 0.125)
    assert sending.moved_after(0.125)


def test_a_channel_that_cannot_be_reopened_soon() -> None:
    """One queue that takes nothing and another that confirms nothing must not stop all messages to others."""
    sending = Sending()
    sending.wire.seconds += 3600
    unconfirmed: Any = SimpleNamespace(sent=Future())
    sending.publisher._in_flight[1] = unconfirmed
    sending.publisher._renew()
    assert not sending.can_send()
    sending.tick(RENEW_WAIT)
    assert sending.can_send()
    sending.publisher._renew()
    assert sending.can_send()
    sending.tick(RENEW_PAUSE)
    unconfirmed.sent.set_result(None)
    sending.publisher._renew()
    assert not sending.can_send()
    assert not sending.publisher._is_open


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[Still]:
    """A session of several hosts that does nothing by itself."""
    peer = Peer()
    made = Still(peer, monkeypatch, "rabbit://one,two")
    yield made
    made.close()
    peer.close()


def test_the_host_is_not_changed_again_and_again(still: Still) -> None:
    """Where no host can declare something, the messages to other addresses would never be left alone."""
    driver: Any = still.transport.driver
    driver.moved_at = still.loop.now() - 10
    still.session.move("it does not declare", pause=30)
    assert driver.consuming.up
    driver.moved_at = still.loop.now() - 31
    still.session.move("it does not declare", pause=30)
    assert not driver.consuming.up
    assert driver.moved_at > still.loop.now() - 10
