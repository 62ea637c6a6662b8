"""What becomes of subscriptions, inboxes and messages when a connection is lost in the middle of something.

Seen on the template of `msgbus new-driver`, with a broker that is slow or does not answer.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from msgbus import CallCancelled, TransportUnavailable
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Delivery, Message
from msgbus.drivers.toolkit.broker import BrokerDriver
from tests.drivers.toolkit.test_broker import OTHER, TOPIC, change, message, newdriver, open_driver
from tests.support import EVENT_TIMEOUT

__all__ = ["newdriver"]  # the fixture

STORED = Address("stored", "x", "t")


def ignore(_got: Delivery) -> None:
    """A subscriber who is not interested."""


def session_of(driver: BrokerDriver) -> Any:
    """The driver's present session."""
    return driver.sending.session


def cut(driver: BrokerDriver) -> None:
    """Break the driver's connection, and wait for that."""
    session = session_of(driver)
    driver.loop.call(session.lose)
    until(lambda: session_of(driver) is not session, "the connection is lost")


def until_up(driver: BrokerDriver) -> None:
    """Wait for a connection."""
    until(lambda: driver.up_since is not None, "there is a connection")


def test_a_subscription_is_closed_with_its_connection(newdriver: ModuleType) -> None:
    """The broker has not answered to `close` yet: nobody waits for that when the connection is lost."""
    change(newdriver._Feed, "close", lambda _old, _feed: None)
    with open_driver(newdriver) as driver:
        subscription = driver.subscribe([TOPIC], ignore, prefetch=1)
        subscription.ready.result(EVENT_TIMEOUT)
        closed = subscription.close()
        driver.loop.call(lambda: None)
        cut(driver)
        closed.result(EVENT_TIMEOUT)
        subscription.stop().result(EVENT_TIMEOUT)


def test_what_a_broken_close_has_left_is_removed_over_the_next_connection(newdriver: ModuleType) -> None:
    """An inbox whose close was not answered before the connection broke leaves nothing on the broker."""
    removed = []

    def remove(_old: Any, _session: Any, source: Any, done: Any) -> None:
        removed.append(source.address)
        done()

    change(newdriver._Feed, "close", lambda _old, _feed: None)
    change(newdriver._Session, "remove", remove)
    change(newdriver.NewdriverDriver, "leaves", lambda _old, _driver, address: address.kind == "inbox")
    with open_driver(newdriver) as driver:
        inbox = driver.open_inbox(ignore)
        inbox.ready.result(EVENT_TIMEOUT)
        closed = inbox.close()
        driver.loop.call(lambda: None)
        cut(driver)
        closed.result(EVENT_TIMEOUT)
    assert removed == [inbox.address]


def test_a_connection_that_breaks_while_consumers_come_back_forgets_none(
    newdriver: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """The first address ends the connection when it is consumed from: all are consumed from over the next one."""
    breaks: list[bool] = []

    def start(old: Any, feed: Any) -> None:
        if breaks:
            breaks.pop()
            feed.session.lose()
        else:
            old(feed)

    def consume(old: Any, system: Any, feed: Any, *args: Any) -> None:
        assert feed.session in system.sessions, "its session is over"
        old(system, feed, *args)

    change(newdriver._Feed, "start", start)
    change(newdriver._System, "consume", consume)
    with open_driver(newdriver) as driver:
        came = []
        for address in (TOPIC, OTHER):
            driver.subscribe([address], lambda got: came.append(got.message.id), prefetch=9).ready.result(EVENT_TIMEOUT)
        breaks.append(True)
        cut(driver)
        until(lambda: not breaks, "the connection breaks a second time")
        until_up(driver)
        for address in (TOPIC, OTHER):
            driver.send(address, message(address.topic), mandatory=True).result(EVENT_TIMEOUT)
        until(lambda: len(came) == 2, "messages to both addresses")
        assert "its session is over" not in caplog.text


def test_inboxes_come_back_first(newdriver: ModuleType) -> None:
    """Whatever was opened first: what a request causes to be called is answered."""
    order: list[str] = []

    def consume(old: Any, session: Any, source: Any) -> Any:
        order.append(source.address.kind)
        return old(session, source)

    change(newdriver._Session, "consume", consume)
    with open_driver(newdriver) as driver:
        driver.subscribe([TOPIC], ignore, prefetch=1).ready.result(EVENT_TIMEOUT)
        driver.open_inbox(ignore).ready.result(EVENT_TIMEOUT)
        assert order == ["topic", "inbox"]
        cut(driver)
        until(lambda: len(order) == 4, "both come back")
    assert order[2:] == ["inbox", "topic"]


def test_what_waits_is_sent_by_a_driver_that_is_closed_meanwhile(newdriver: ModuleType) -> None:
    """The inbox comes back a moment after the connection, while `close` waits for what was sent before."""
    closing = threading.Event()

    def start(old: Any, feed: Any) -> None:
        if closing.is_set():
            feed.session.loop.call_later(0.05, old, feed)
        else:
            old(feed)

    change(newdriver._Feed, "start", start)
    with open_driver(newdriver) as driver:
        driver.open_inbox(ignore).ready.result(EVENT_TIMEOUT)
        system = session_of(driver).system
        system.up = False
        cut(driver)
        sent = driver.send(TOPIC, message("x"), mandatory=False)
        closing.set()
        thread = threading.Thread(target=driver.close)
        thread.start()
        until(lambda: driver._closed, "the driver is being closed")
        system.up = True
        thread.join(EVENT_TIMEOUT)
        sent.result(0)


def test_what_a_lost_session_says_of_a_declaration_is_not_believed(newdriver: ModuleType) -> None:
    """A message that waits for a declaration goes over the next connection, as any that was not sent yet."""
    waiting: list[Any] = []
    change(newdriver._Session, "declare", lambda _old, _session, _address, declared: waiting.append(declared))

    def let_go(old: Any, session: Any) -> None:
        while waiting:
            waiting.pop()(TransportUnavailable("the connection is away"))
        old(session)

    change(newdriver._Session, "let_go", let_go)
    with open_driver(newdriver) as driver:
        sent = driver.send(STORED, message("x"), mandatory=False)
        until(lambda: waiting, "the declaration begins")
        cut(driver)
        until(lambda: waiting, "it begins again")
        session = session_of(driver)
        session._declared.add(STORED)
        session.system.declare(newdriver.queue_of(STORED), newdriver.key_of(STORED))
        driver.loop.call(waiting.pop())
        assert sent.result(EVENT_TIMEOUT).reached == 1


def test_what_a_lost_session_says_of_an_address_is_not_believed(newdriver: ModuleType) -> None:
    """Nobody has refused it for good: it is consumed from over the next connection, and `ready` is done then."""
    started: list[Any] = []

    def start(old: Any, feed: Any) -> None:
        started.append(feed)
        if len(started) > 1:
            old(feed)

    def let_go(old: Any, session: Any) -> None:
        for feed in started:
            feed._source.refused(feed, "no answer: the connection is away")
        old(session)

    change(newdriver._Feed, "start", start)
    change(newdriver._Session, "let_go", let_go)
    with open_driver(newdriver) as driver:
        subscription = driver.subscribe([TOPIC], ignore, prefetch=1)
        until(lambda: started, "the declaration begins")
        cut(driver)
        subscription.ready.result(EVENT_TIMEOUT)


def test_a_session_that_cannot_be_started_is_tried_again(
    newdriver: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it raises, what waits is sent over the next connection."""
    errors = [OSError("no space left on device")]

    def start(old: Any, session: Any) -> None:
        if errors:
            raise errors.pop()
        old(session)

    change(newdriver._Session, "start", start)
    with open_driver(newdriver) as driver:
        driver.send(TOPIC, message("x"), mandatory=False).result(EVENT_TIMEOUT)
    assert "no space left on device; check that it runs" in caplog.text


@pytest.mark.parametrize("error", [TransportUnavailable("no channel is left"), ValueError("a bug")])
def test_a_declaration_that_raises_fails_what_waits_for_it(newdriver: ModuleType, error: Exception) -> None:
    """And not only at the end of the message's time, which may have none."""

    def declare(old: Any, *args: Any) -> None:
        if errors:
            raise errors.pop()
        old(*args)

    errors = [error]
    change(newdriver._Session, "declare", declare)
    with open_driver(newdriver) as driver:
        for sent in [driver.send(STORED, Message(b"", "", "i"), mandatory=False) for _ in range(2)]:
            assert str(error) in str(sent.exception(EVENT_TIMEOUT))
        driver.send(STORED, Message(b"", "", "i"), mandatory=False).result(EVENT_TIMEOUT)


def test_a_look_that_raises_fails_at_once(newdriver: ModuleType) -> None:
    """What `inspect` of the session raises is what the future fails with."""
    driver_class = newdriver.NewdriverDriver
    driver_class.capabilities = driver_class.capabilities | {"inspect"}

    def inspect(_old: Any, _session: Any, _address: Any, _found: Any) -> None:
        raise TransportUnavailable("no channel is left")

    change(newdriver._Session, "inspect", inspect)
    with open_driver(newdriver) as driver:
        error = driver.inspect(TOPIC).exception(EVENT_TIMEOUT)
        assert str(error) == "no channel is left"


def test_a_child_leaves_the_parents_feeds_alone(newdriver: ModuleType) -> None:
    """What it inherited is closed for it: to stop or close it again touches no connection of the parent's."""
    touched: list[str] = []

    def touch(name: str, _old: Any, _feed: Any) -> None:
        touched.append(name)

    with open_driver(newdriver) as driver:
        subscription = driver.subscribe([TOPIC], ignore, prefetch=1)
        subscription.ready.result(EVENT_TIMEOUT)
        for name in ("cancel", "close"):
            change(newdriver._Feed, name, partial(touch, name))
        # As in a forked child, without one: pytest's threads do not survive a fork.
        driver._forked()
        driver.send(TOPIC, message("x"), mandatory=False).result(EVENT_TIMEOUT)
        for ended in (subscription.stop(), subscription.close()):
            with pytest.raises(CallCancelled):
                ended.result(EVENT_TIMEOUT)
        done: Future[None] = Future()
        driver.loop.call(done.set_result, None)
        done.result(EVENT_TIMEOUT)
    assert touched == []


@pytest.mark.parametrize(("part", "method"), [("_Session", "let_go"), ("_Feed", "end")])
def test_a_bug_in_the_end_of_a_connection_does_not_keep_the_next_one_away(
    newdriver: ModuleType, caplog: pytest.LogCaptureFixture, part: str, method: str
) -> None:
    """It is logged; the connection comes back, and with it both subscriptions."""
    errors = [ValueError("a bug")]

    def end(old: Any, thing: Any) -> None:
        old(thing)
        if errors:
            raise errors.pop()

    change(getattr(newdriver, part), method, end)
    with open_driver(newdriver) as driver:
        came: list[str] = []
        for address in (TOPIC, OTHER):
            driver.subscribe([address], lambda got: came.append(got.message.id), prefetch=9).ready.result(EVENT_TIMEOUT)
        cut(driver)
        for address in (TOPIC, OTHER):
            driver.send(address, message(address.topic), mandatory=True).result(EVENT_TIMEOUT)
        until(lambda: len(came) == 2, "messages to both addresses")
    assert "a bug" in caplog.text
