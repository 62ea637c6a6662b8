"""msgbus.drivers.toolkit.broker and sending, with a driver whose broker is a few lines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from msgbus import TransportUnavailable
from msgbus.drivers.base import Address, Message, QueueInfo, Sent
from msgbus.drivers.toolkit.broker import BrokerDriver
from msgbus.drivers.toolkit.consuming import Feed, Source
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.sending import Offer, OnDeclared, Outgoing
from msgbus.drivers.toolkit.session import Line, Session
from msgbus.url import TransportHost
from tests.support import EVENT_TIMEOUT

TOPIC = Address("topic", "x", "t")


class Tiny(BrokerDriver):
    """Its broker is always there, and confirms after `delay` seconds; with None, never."""

    delay: float | None = 0.05
    word_within: float | None = None

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop, [TransportHost("h")])

    def dial(self, host: TransportHost, purpose: str) -> object:
        return object()

    def discard(self, connection: object) -> None:
        pass

    def open_session(self, line: Line, connection: object) -> TinySession:
        return TinySession(self, line)

    def explain(self, error: BaseException, host: TransportHost) -> tuple[str, bool]:
        return str(error), False

    def describe(self, host: TransportHost) -> str:
        return "a broker in the test"


class TinySession(Session):
    """It sends, and nothing else."""

    def __init__(self, driver: Tiny, line: Line) -> None:
        self._driver = driver
        self._line = line

    def start(self) -> None:
        self._line.serve("h")
        self._line.sendable()

    def publish(self, outgoing: Outgoing) -> Offer:
        if self._driver.word_within is not None:
            outgoing.expect_word_within(self._driver.word_within)
        if self._driver.delay is not None:
            self._driver.loop.call_later(self._driver.delay, outgoing.confirmed)
        return Offer.SENT

    def declare(self, address: Address, declared: OnDeclared) -> None:
        raise NotImplementedError

    def consume(self, source: Source) -> Feed:
        raise NotImplementedError

    def inspect(self, address: Address, found: Future[QueueInfo]) -> None:
        raise NotImplementedError

    def let_go(self) -> None:
        pass

    def abandon(self) -> None:
        pass


@pytest.fixture
def driver() -> Iterator[Tiny]:
    """One that is closed at the end."""
    loop = Loop("test-loop")
    made = Tiny(loop)
    yield made
    made.close_timeout = 0.1
    made.close()
    loop.close()


def test_close_waits_for_calls_that_the_loop_has_not_run_yet(driver: Tiny) -> None:
    """What was sent right before `close`, on a busy loop, is sent and confirmed as if the loop had been idle."""
    assert driver.send(TOPIC, Message(b"", "", "first"), mandatory=True).result(EVENT_TIMEOUT) == Sent()
    is_free = threading.Event()
    driver.loop.call(is_free.wait)
    sent = driver.send(TOPIC, Message(b"", "", "last"), mandatory=True)
    threading.Timer(0.2, is_free.set).start()
    driver.close()
    assert sent.result(0) == Sent()


@pytest.mark.parametrize("ttl", [None, 600.0])
def test_an_answer_that_comes_at_once_or_never_is_not_waited_for(driver: Tiny, ttl: float | None) -> None:
    """Where the driver says so the send fails soon, as maybe delivered, although its sender would wait longer."""
    driver.delay, driver.word_within = None, 0.05
    error = driver.send(TOPIC, Message(b"", "", "i", ttl), mandatory=True).exception(EVENT_TIMEOUT)
    assert isinstance(error, TransportUnavailable)
    assert error.maybe_delivered


def test_a_wait_for_an_answer_is_never_longer_than_the_senders(driver: Tiny) -> None:
    """The sender's own time, where that is shorter, counts."""
    driver.delay, driver.word_within = None, 600.0
    error = driver.send(TOPIC, Message(b"", "", "i", 0.05), mandatory=True).exception(EVENT_TIMEOUT)
    assert isinstance(error, TransportUnavailable)
    assert error.maybe_delivered


def test_a_driver_without_a_limit_of_its_own_takes_any_size(driver: Tiny) -> None:
    """What only the broker knows is for the session to refuse."""
    message = Message(bytes(17 * 1024 * 1024), "", "i")
    assert driver.send(TOPIC, message, mandatory=True).result(EVENT_TIMEOUT) == Sent()
