"""A message system in memory for tests of services."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from msgbus import (
    MessageUndeliverable,
    MessagingTimeout,
    OutcomeUnknown,
    Target,
    TransportBlocked,
    TransportUnavailable,
    get_rpc_client,
    get_rpc_transport,
)
from msgbus.conformance.waiting import Task, until
from msgbus.testing import MemoryBus


class Hello:
    """The service under test."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def greet(self, _ctxt: object, name: str) -> str:
        return f"Hello, {name}"

    async def agreet(self, _ctxt: object, name: str) -> str:
        await asyncio.sleep(0)
        return f"Hello, {name}"

    def note(self, _ctxt: object, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    """A bus, closed at the end."""
    with MemoryBus() as bus:
        yield bus


def test_a_server_and_a_client(bus: MemoryBus) -> None:
    """Both are made in a line each, for a topic, one server or a whole target, and are on one message system."""
    bus.serve("hello", Hello(), server="one")
    assert bus.client("hello").call({}, "greet", name="Ada") == "Hello, Ada"
    assert bus.client(Target(topic="hello", server="one")).call({}, "agreet", name="Bob") == "Hello, Bob"


def test_code_under_test_makes_its_own_transport(bus: MemoryBus) -> None:
    """By the configuration or by the URL it is on the same message system."""
    bus.serve("hello", Hello())
    for transport in (get_rpc_transport(bus.conf), get_rpc_transport(bus.conf, bus.url)):
        client = get_rpc_client(transport, Target(topic="hello"))
        assert client.call({}, "greet", name="Ada") == "Hello, Ada"
        transport.cleanup()


def test_two_buses_share_nothing(bus: MemoryBus) -> None:
    """So tests that run at the same time do not meet."""
    with MemoryBus() as other:
        other.serve("hello", Hello())
        with pytest.raises(MessageUndeliverable):
            bus.client("hello").call({}, "greet", name="Ada")


def test_the_end_stops_servers_and_closes_the_transport() -> None:
    """Also where it is reached twice."""
    with MemoryBus() as bus:
        server = bus.serve("hello", Hello())
        bus.silent("other")
    bus.close()
    assert bus.transport.closed
    assert not server.healthy().ready


def test_options_of_the_core() -> None:
    """They can be set for a test."""
    with MemoryBus(rpc_response_timeout=0.5) as bus:
        bus.silent("hello")
        with pytest.raises(MessagingTimeout, match=r"within 0\.5 s"):
            bus.client("hello").call({}, "greet", name="Ada")


def test_prepared_answers(bus: MemoryBus) -> None:
    """A value is returned, an exception raised, a function called with the arguments."""
    bus.answer("inventory", {"count": 7, "reserve": KeyError("no nail"), "double": lambda value: 2 * value})
    client = bus.client("inventory")
    assert client.call({}, "count") == 7
    with pytest.raises(KeyError, match="no nail"):
        client.call({}, "reserve", item="nail")
    assert client.call({}, "double", value=4) == 8


def test_a_prepared_exception_knows_nothing_of_former_calls(bus: MemoryBus) -> None:
    """Each caller sees the traceback of its own call alone."""
    bus.answer("inventory", {"reserve": KeyError("no nail")})
    lines = []
    for _ in range(3):
        with pytest.raises(KeyError) as caught:
            bus.client("inventory").call({}, "reserve")
        lines.append(caught.value.__notes__[0].count("\n"))
    assert lines == lines[:1] * 3


def test_a_silent_server(bus: MemoryBus) -> None:
    """A call gets no answer by its deadline, and casts are taken."""
    bus.silent("hello", server="one")
    with pytest.raises(MessagingTimeout):
        bus.client("hello", timeout=0.5).call({}, "greet", name="Ada")
    bus.client("hello").cast({}, "note", text="a")
    bus.client("hello").fanout_cast({}, "note", text="b")
    bus.client(Target(topic="hello", server="one")).cast({}, "note", text="c")
    assert [sent.args["text"] for sent in bus.sent.requests if sent.method == "note"] == ["a", "b", "c"]


def test_the_message_system_is_away(bus: MemoryBus) -> None:
    """What is sent waits for it until its deadline, and is sent when it is back."""
    hello = Hello()
    bus.serve("hello", hello)
    with bus.faults.away():
        with pytest.raises(TransportUnavailable):
            bus.client("hello", timeout=2).call({}, "greet", name="Ada")
        waiting = Task(bus.client("hello").cast, {}, "note", text="later")
        until(lambda: bool(bus.sent.casts), "the cast waits")
        assert hello.notes == []
    waiting.result(20)
    until(lambda: hello.notes == ["later"], "the cast has run")


def test_the_message_system_hangs(bus: MemoryBus) -> None:
    """The outcome of what is sent is not known."""
    bus.serve("hello", Hello())
    with bus.faults.hanging(), pytest.raises(OutcomeUnknown):
        bus.client("hello", timeout=1).cast({}, "note", text="a")
    assert bus.client("hello").call({}, "greet", name="Ada") == "Hello, Ada"


def test_messages_are_late(bus: MemoryBus) -> None:
    """A call whose messages take longer than it has runs into its timeout; after that they are as fast as before."""
    bus.serve("hello", Hello())
    with bus.faults.delayed(3600), pytest.raises(MessagingTimeout):
        bus.client("hello", timeout=0.5).call({}, "greet", name="Ada")
    assert bus.client("hello").call({}, "greet", name="Ada") == "Hello, Ada"


def test_messages_are_lost_and_refused(bus: MemoryBus) -> None:
    """The next one, or the next few, and no others."""
    bus.serve("hello", Hello())
    bus.faults.lose_next()
    with pytest.raises(MessagingTimeout):
        bus.client("hello", timeout=0.5).call({}, "greet", name="Ada")
    bus.faults.fail_next(TransportBlocked("its disk is full"))
    with pytest.raises(TransportBlocked, match="its disk is full"):
        bus.client("hello").cast({}, "note", text="a")
    assert bus.client("hello").call({}, "greet", name="Ada") == "Hello, Ada"


def test_connections_break(bus: MemoryBus) -> None:
    """They are there again at once."""
    hello = Hello()
    bus.serve("hello", hello)
    bus.faults.cut()
    bus.client("hello").cast({}, "note", text="a")
    until(lambda: hello.notes == ["a"], "the cast has run")


def test_on_an_event_loop(bus: MemoryBus) -> None:
    """Servers and clients for asyncio are on the same message system as those for threads, and so is what was sent."""
    bus.serve("plain", Hello())

    async def main() -> None:
        async with bus.aio() as on_loop:
            await on_loop.serve("hello", Hello())
            await on_loop.answer("inventory", {"count": 7})
            assert await on_loop.client("hello").call({}, "agreet", name="Ada") == "Hello, Ada"
            assert await on_loop.client("inventory").call({}, "count") == 7
            assert await on_loop.client("plain").call({}, "greet", name="Ada") == "Hello, Ada"
            later = asyncio.get_running_loop().create_task(on_loop.client("hello").cast({}, "note", text="a"))
            assert (await bus.sent.aexpect("cast", "note")).args == {"text": "a"}
            await later
            with pytest.raises(AssertionError, match="no call missing that fits"):
                await bus.sent.aexpect("call", "missing", timeout=0.02)

    asyncio.run(main())
    assert [sent.method for sent in bus.sent.calls] == ["agreet", "count", "greet"]
