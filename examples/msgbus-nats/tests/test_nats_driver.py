"""What the suite cannot know of: names, headers, ages, a fork, errors without passwords."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from oslo_config import cfg

from msgbus import CallCancelled, ConfigurationError, Transport, TransportUnavailable, get_rpc_transport
from msgbus.drivers.base import Address, Delivery, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus_nats.clock import Clock
from msgbus_nats.connection import Connection
from msgbus_nats.errors import SUBJECTS_OVERLAP, JetStreamError
from msgbus_nats.connection import Connection
from msgbus_nats.errors import SUBJECTS_OVERLAP, JetStreamError
from msgbus_nats.jetstream import JetStream
from msgbus_nats.names import escape, headers_of, message_of, stream_of, subject_of

NAMES = [
    "",
    "foo",
    "a.b",
    "a b",
    "*",
    ">",
    "=",
    "=2E",
    "Größe 漢字",
    "a,b",
    "x" * 75,
    "x" * 74 + "y",
    "漢" * 75,
    "A",
    "a",
]
TOPIC = Address("topic", "x", "foo")


@pytest.fixture
def transports(server: Any) -> Iterator[Callable[..., Transport]]:
    """Makes transports that are closed at the end."""
    made = []

    def make(url: str = server.url) -> Transport:
        made.append(get_rpc_transport(cfg.ConfigOpts(), url))
        return made[-1]

    yield make
    for transport in made:
        transport.cleanup()


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Return when it is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def test_names_stay_apart_and_fit() -> None:
    """Whatever a name holds, it becomes one token of a subject and a part of a file's name, and no two the same."""
    assert len({escape(name) for name in NAMES}) == len(NAMES)
    for name in NAMES:
        assert escape(name)
        assert not set(escape(name)) & set(".*> /\\,\t\r\n")
        assert len(stream_of(Address("server", name, name, name))) < 255
    addresses = [Address("topic", a, b) for a in NAMES for b in NAMES]
    assert len({subject_of(address) for address in addresses}) == len(addresses)


@pytest.mark.parametrize("text", ["", " ", "a\r\nStatus: 503", "ü", "%41", "application/json; charset=utf-8"])
def test_headers_bring_back_what_they_were_given(text: str) -> None:
    """Ids and content types may hold anything; nothing of them is taken for another header."""
    headers = headers_of(Message(b"x", text, text), 2.5)
    assert all(value.isascii() and value == value.strip() and "\n" not in value for value in headers.values())
    got = message_of(b"x", headers, 0.5)
    assert (got.content_type, got.id, got.ttl) == (text, text, 2.0)


@pytest.mark.parametrize("headers", [None, {}, {"Msgbus-Ttl": "soon"}])
def test_messages_of_others_are_read(headers: dict[str, str] | None) -> None:
    """Without our headers, or with broken ones, what comes is a message without them."""
    assert message_of(b"x", headers, 1.0) == Message(b"x", "", "")


def test_a_clock_never_makes_a_message_older() -> None:
    """What came late teaches nothing; what came soon counts from then on, whatever the server's clock shows."""
    clock, far = Clock(), Loop.now() + 1e9
    assert clock.age(far - 100) == pytest.approx(0, abs=0.5)
    assert clock.age(far) == pytest.approx(0, abs=0.5)
    assert clock.age(far - 100) == pytest.approx(100, abs=0.5)
    clock.see("2001-09-09T01:46:40.5Z")
    assert clock.age(far - 100) == pytest.approx(100, abs=0.5)


def test_a_password_is_shown_nowhere(transports: Callable[..., Transport], caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the state, nor in errors, nor in the log, when nobody answers."""
    driver = transports("nats://me:s3cr3t@127.0.0.1:1/").driver
    error = driver.send(TOPIC, Message(b"", "", "i", 0.5), mandatory=True).exception(10)
    assert isinstance(error, TransportUnavailable)
    assert not error.maybe_delivered
    assert "127.0.0.1:1" in str(error)
    assert "s3cr3t" not in f"{error}{driver.state}{caplog.text}"


def test_a_wrong_option_is_an_error(transports: Callable[..., Transport], server: Any) -> None:
    """Its text names the option."""
    with pytest.raises(ConfigurationError, match="ack_wait"):
        transports(server.url + "?ack_wait=0.1")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_clean(transports: Callable[..., Transport]) -> None:
    """In it inherited futures fail, the driver works over a connection of its own, and the parent's goes on."""
    driver = transports().driver
    got: list[Delivery] = []
    driver.subscribe([TOPIC], got.append, prefetch=5).ready.result(15)
    gone = driver.send(Address("inbox", name="nobody"), Message(b"", "", "i", 30.0), mandatory=False)
    gone.result(15)
    waiting = transports("nats://127.0.0.1:1/").driver.send(TOPIC, Message(b"", "", "i", 30.0), mandatory=True)
    child = os.fork()
    if child == 0:
        try:
            assert isinstance(waiting.exception(0), CallCancelled)
            driver.send(TOPIC, Message(b"child", "t", "c", 30.0), mandatory=True).result(15)
            driver.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert not waiting.done()
    driver.send(TOPIC, Message(b"parent", "t", "p", 30.0), mandatory=True).result(15)
    wait_for(lambda: len(got) == 2)
    assert [delivery.message.body for delivery in got] == [b"child", b"parent"]
    assert all(delivery.accept() for delivery in got)


def test_what_a_dead_subscriber_held_comes_again_soon(transports: Callable[..., Transport], server: Any) -> None:
    """JetStream does not see that a connection ends: what its owner does not renew comes again after ack_wait."""
    address = TOPIC._replace(topic="dies")
    child = os.fork()
    if child == 0:
        held: list[Delivery] = []
        transport = get_rpc_transport(cfg.ConfigOpts(), server.url + "?ack_wait=2")
        driver = transport.driver
        driver.subscribe([address], held.append, prefetch=5).ready.result(15)
        driver.send(address, Message(b"x", "t", "i", 60.0), mandatory=True).result(15)
        wait_for(lambda: held)
        time.sleep(5)  # longer than ack_wait: it is renewed meanwhile
        os._exit(len(held))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    got: list[Delivery] = []
    transports(server.url + "?ack_wait=2").driver.subscribe([address], got.append, prefetch=5)
    wait_for(lambda: got, 10)
    assert (got[0].redelivered, got[0].attempts) == (True, 1)
    assert got[0].accept()


def test_a_stream_that_another_makes_at_the_same_moment(
    transports: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JetStream then says that its subjects overlap with a stream, which is the one that was wanted."""
    ask = Connection.ask

    async def ask_too_late(connection: Connection, subject: str, order: Any = None) -> dict[str, Any]:
        answer = await ask(connection, subject, order)
        if subject.startswith("STREAM.CREATE."):
            raise JetStreamError({"code": 400, "err_code": SUBJECTS_OVERLAP, "description": "subjects overlap"})
        return answer

    monkeypatch.setattr(Connection, "ask", ask_too_late)
    address = Address("topic", "x", "at-once")
    transports().driver.subscribe([address], lambda delivery: None, prefetch=1).ready.result(15)


def test_a_pull_request_that_is_lost_is_followed_by_another(
    transports: Callable[..., Transport], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NATS may forget one: messages are not kept waiting for its answer, nor for the next keepalive."""
    pull = JetStream.pull
    lost: list[Any] = []

    def lose_the_first(jetstream: JetStream, *args: Any) -> None:
        if lost:
            pull(jetstream, *args)
        else:
            lost.append(args)

    monkeypatch.setattr(JetStream, "pull", lose_the_first)
    address = Address("topic", "x", "forgotten")
    got: list[Delivery] = []
    driver = transports(server.url + "?ack_wait=600").driver  # A keepalive comes after 150 s.
    driver.subscribe([address], got.append, prefetch=1).ready.result(15)
    driver.send(address, Message(b"x", "t", "i", 30.0), mandatory=True).result(15)
    wait_for(lambda: got)
    assert lost
    assert got[0].accept()


def test_a_stream_that_another_makes_at_the_same_moment(
    transports: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JetStream then says that its subjects overlap with a stream, which is the one that was wanted."""
    ask = Connection._api

    async def ask_too_late(connection: Connection, subject: str, payload: Any = None) -> dict[str, Any]:
        answer = await ask(connection, subject, payload)
        if subject.startswith("STREAM.CREATE."):
            raise JetStreamError({"code": 400, "err_code": SUBJECTS_OVERLAP, "description": "subjects overlap"})
        return answer

    monkeypatch.setattr(Connection, "_api", ask_too_late)
    address = Address("topic", "x", "at-once")
    transports().driver.subscribe([address], lambda delivery: None, prefetch=1).ready.result(15)
