"""msgbus.drivers.zmq.sender: when it checks for messages that have no receipt."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.matchmakers.base import Directory, Entry, Service
from msgbus.drivers.zmq.queue import Parcel
from msgbus.drivers.zmq.routing import Router
from msgbus.drivers.zmq.sender import ZmqSender
from msgbus.exceptions import TransportUnavailable

TOPIC = Address("topic", "msgbus", "foo")


class Timers:
    """A loop that has nothing but timers, which the test runs."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def call_later(self, _delay: float, func: Callable[..., None], *args: Any) -> None:
        """Keep a timer."""
        self.waiting.append((func, args))

    def run(self) -> None:
        """Run each of those that are waiting now."""
        waiting, self.waiting = self.waiting, []
        for func, args in waiting:
            func(*args)


class OneLink:
    """Connections to a single node, which answers nothing."""

    def __init__(self) -> None:
        self.on_record: dict[int, Any] = {}
        self.there = PeerLink("there", None, b"", -1, 1000, 0)

    def link(self, node: str) -> PeerLink | None:
        """The connection to a node."""
        return self.there if node == "there" else None

    def all(self) -> list[PeerLink]:
        """All connections."""
        return [self.there]

    def send(self, link: PeerLink, data: bytes) -> None:
        """Send a record."""


class Nobody:
    """A matchmaker that knows all nodes."""

    is_opening = False

    @staticmethod
    def is_alive(_node: str) -> bool:
        """Whether a node's process lives."""
        return True


def make_sender() -> tuple[Timers, Callable[[float], Future[Sent]]]:
    """The timers of a sender, and a function that sends a message with so many seconds."""
    timers, links, directory, matchmaker = Timers(), OneLink(), Directory(), Nobody()
    made: list[Any] = [timers, links, matchmaker]
    directory.update({"there": Entry("there", 1, "here", [], [Service((*TOPIC,), 1, 10)])})
    router = Router(made[1], directory)
    sender = ZmqSender(made[0], made[1], directory, router, lambda: None, made[2], 60.0)

    def send(ttl: float) -> Future[Sent]:
        sent: Future[Sent] = Future()
        sender.send(Parcel(TOPIC, Message(b"", "text", "id", ttl), True, sent))
        return sent

    return timers, send


def test_checks_do_not_pile_up() -> None:
    """A message with less time is checked for sooner; the checks that were to be made later are made no more."""
    timers, send = make_sender()
    for ttl in (1000.0, 500.0, 400.0, 300.0):
        send(ttl)
    assert len(timers.waiting) == 4
    for _ in range(3):
        timers.run()
        assert len(timers.waiting) == 1


def test_one_check_for_many_messages_with_the_same_time() -> None:
    """A busy sender does not have a timer for each message."""
    timers, send = make_sender()
    for _ in range(100):
        send(60.0)
    assert len(timers.waiting) == 1


def test_message_without_a_receipt_fails_when_its_time_has_ended() -> None:
    """It may have been delivered. Those that have time left wait on."""
    timers, send = make_sender()
    late, early = send(100.0), send(-1.0)
    timers.run()
    error = early.exception(0)
    assert isinstance(error, TransportUnavailable)
    assert error.maybe_delivered
    assert not late.done()
    assert len(timers.waiting) == 1
