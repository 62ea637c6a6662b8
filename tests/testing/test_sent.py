"""What code under test has sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from msgbus import MessageUndeliverable
from msgbus import rpc as classic
from msgbus.drivers.base import Address, Message
from msgbus.message import JSON
from msgbus.payload import encode
from msgbus.testing import MemoryBus, Sent, SentNotification, SentRequest


class Hello:
    """The service that is called."""

    def greet(self, _ctxt: object, name: str) -> str:
        return f"Hello, {name}"

    def count(self, _ctxt: object, to: int) -> Iterator[int]:
        yield from range(to)


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    """A bus with a server, closed at the end."""
    with MemoryBus() as bus:
        bus.serve("hello", Hello())
        yield bus


def test_requests_are_recorded_with_their_verb(bus: MemoryBus) -> None:
    """Each with topic, method and arguments, in order; what servers answer, pings and control frames are not."""
    client = bus.client("hello")
    client.call({"user": "u"}, "greet", name="Ada")
    client.cast({}, "greet", name="Bob")
    list(client.multicall({}, "count", to=500))
    client.fanout_cast({}, "greet", name="Cyd")
    list(client.gather({}, "greet", name="Dot"))
    list(client.ping())
    client.prepare(server="test", version="1.0").call({}, "greet", name="Eve")
    assert bus.sent.requests == [
        SentRequest("call", "hello", "greet", {"name": "Ada"}, context={"user": "u"}, exchange="msgbus"),
        SentRequest("cast", "hello", "greet", {"name": "Bob"}, exchange="msgbus"),
        SentRequest("multicall", "hello", "count", {"to": 500}, exchange="msgbus"),
        SentRequest("fanout_cast", "hello", "greet", {"name": "Cyd"}, exchange="msgbus"),
        SentRequest("gather", "hello", "greet", {"name": "Dot"}, exchange="msgbus"),
        SentRequest("call", "hello", "greet", {"name": "Eve"}, "test", exchange="msgbus", version="1.0"),
    ]
    assert [sent.verb for sent in bus.sent.calls] == ["call", "multicall", "gather", "call"]
    assert [sent.args["name"] for sent in bus.sent.casts] == ["Bob"]
    assert [sent.args["name"] for sent in bus.sent.fanouts] == ["Cyd"]
    bus.sent.clear()
    assert bus.sent.requests == []


def test_what_could_not_be_delivered_was_sent(bus: MemoryBus) -> None:
    """Code under test has sent it, even if nobody was there."""
    with pytest.raises(MessageUndeliverable):
        bus.client("nobody").cast({}, "greet", name="Ada")
    assert [str(sent) for sent in bus.sent.requests] == ["cast greet(name='Ada') to nobody"]


def test_what_is_repeated_counts_once(bus: MemoryBus) -> None:
    """The library's own repetitions are not the program's."""
    client = bus.client("hello", delivery="at_least_once")
    with bus.faults.away():
        thread = threading.Thread(target=client.call, args=({}, "greet"), kwargs={"name": "Ada"})
        thread.start()
        bus.sent.expect("call", "greet")
    thread.join(20)
    assert len(bus.sent.requests) == 1


def test_expectations(bus: MemoryBus) -> None:
    """One returns what fits, and waits for what is sent later; a failure says what was sent instead."""
    client = bus.client("hello")
    timer = threading.Timer(0.05, client.cast, ({}, "greet"), {"name": "Ada"})
    timer.start()
    assert bus.sent.expect("cast", "greet", {"name": "Ada"}, topic="hello").topic == "hello"
    timer.join()
    client.prepare(server="test").call({}, "greet", name="Bob")
    assert bus.sent.expect("call", "greet", server="test").args == {"name": "Bob"}
    for wrong in (
        {"verb": "call", "method": "greet", "args": {"name": "Ada"}},
        {"verb": "cast", "method": "greet", "topic": "other"},
        {"verb": "cast", "method": "greet", "server": "test"},
        {"verb": "cast", "method": "other"},
    ):
        with pytest.raises(AssertionError) as caught:
            bus.sent.expect(**wrong, timeout=0)
        assert str(caught.value).splitlines()[1:] == [
            "    cast greet(name='Ada') to hello",
            "    call greet(name='Bob') to hello, server test",
        ]
    bus.sent.clear()
    with pytest.raises(AssertionError, match="there was:\n    nothing"):
        bus.sent.expect("cast", "greet", timeout=0)


def test_notifications_of_oslo_messagings_form() -> None:
    """They are recorded by what they say, with or without an envelope."""
    sent = Sent()
    notification = {
        "message_id": "1",
        "publisher_id": "compute.host1",
        "event_type": "instance.created",
        "priority": "INFO",
        "payload": {"id": 7},
        "timestamp": "2026-11-29 00:00:00.000000",
        "_unique_id": "u1",
        "_context_user": "u",
    }
    address = Address("topic", "msgbus", "notifications.info")
    sent.watch(address, Message(encode(notification, JSON), JSON, "m1"))
    sent.watch(address._replace(kind="stored"), Message(encode(notification, JSON), JSON, "m1"))
    expected = SentNotification(
        "notifications.info", {"id": 7}, "instance.created", "INFO", "compute.host1", {"user": "u"}
    )
    assert sent.notifications == [expected]
    assert sent.expect_notification("instance.created", priority="info", topic="notifications.info") == expected
    assert sent.requests == []
    for wrong in ({"event_type": "other"}, {"event_type": "instance.created", "priority": "error"}):
        with pytest.raises(AssertionError, match=r"notification instance.created \{'id': 7\} to notifications.info"):
            sent.expect_notification(**wrong, timeout=0)


def test_notifications_of_the_classic_api(bus: MemoryBus) -> None:
    """Any dict is one: it is the payload."""
    classic.init(bus.conf)
    try:
        classic.notify({"user": "u"}, "alarms", {"what": "fire"})
    finally:
        classic.cleanup()
    assert bus.sent.notifications == [SentNotification("alarms", {"what": "fire"}, context={"user": "u"})]


def test_what_cannot_be_read_is_left_out() -> None:
    """It is no request of a client, and must not fail its sender."""
    sent = Sent()
    sent.watch(Address("topic", "msgbus", "x"), Message(b"\xff", JSON, "m1"))
    assert (sent.requests, sent.notifications) == ([], [])
