"""What the suite cannot know of: names, headers, ages, a fork, errors without passwords."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import nats
import pytest
from oslo_config import cfg

from msgbus import CallCancelled, ConfigurationError, Transport, TransportUnavailable, get_rpc_transport
from msgbus.drivers.base import Address, Delivery, Message, Sent
from msgbus.drivers.toolkit.loop import Loop
from msgbus_nats import connection, feed, mark, session
from msgbus_nats.clock import Clock
from msgbus_nats.connection import Connection
from msgbus_nats.errors import SUBJECTS_OVERLAP, JetStreamError
from msgbus_nats.jetstream import JetStream
from msgbus_nats.names import MARKS, escape, headers_of, mark_of, message_of, stream_of, subject_of

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


@pytest.mark.parametrize("kind", ["fanout", "topic"])
def test_a_client_that_reads_slowly_is_not_disconnected(
    transports: Callable[..., Transport], server: Any, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """Messages of more than max_pending wait for it: NATS sends a part, and all come once, in order."""
    monkeypatch.setattr(feed, "COUNTS_ALL", (2, 9, 0))
    address = Address(kind, "x", "large")
    came, gate = threading.Event(), threading.Event()
    got: list[Delivery] = []

    def read_slowly(delivery: Delivery) -> None:
        got.append(delivery)
        came.set()
        gate.wait(60)  # Nothing else is read meanwhile.

    driver: Any = transports().driver
    sender = transports().driver
    driver.subscribe([address], read_slowly, prefetch=20).ready.result(15)
    is_free = threading.Event()
    driver.loop.call(is_free.wait, 60)
    for number in range(12):
        body = bytes(7 * 1024 * 1024)
        sender.send(address, Message(body, "t", str(number), 60.0), mandatory=kind == "topic").result(15)
    is_free.set()
    assert came.wait(30)
    # NATS has sent all that was asked for, or has closed the connection.
    wait_for(lambda: not asyncio.run(_requests(server, address)))
    gate.set()
    wait_for(lambda: len(got) == 12, 60)
    assert [(delivery.message.id, delivery.redelivered) for delivery in got] == [(str(n), False) for n in range(12)]
    assert all(delivery.accept() for delivery in got)


async def _requests(server: Any, address: Address) -> int | None:
    """How many pull requests of the address's one consumer wait for messages."""
    client = await nats.connect(server.url)
    found = (await client.jetstream().consumers_info(stream_of(address)))[0].num_waiting
    await client.close()
    return found


def test_a_subscriber_whose_pull_request_is_refused_asks_again_in_a_while(
    transports: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More subscribers than a consumer has room for requests share it, and do not ask without a pause."""
    pull, add_consumer = JetStream.pull, JetStream._add_consumer
    asked: Counter[JetStream] = Counter()

    async def add_small_consumer(jetstream: JetStream, address: Address, name: str, more: dict[str, Any]) -> None:
        await add_consumer(jetstream, address, name, {**more, "max_waiting": 1})

    def count_pulls(jetstream: JetStream, *args: Any) -> None:
        asked[jetstream] += 1
        pull(jetstream, *args)

    monkeypatch.setattr(JetStream, "_add_consumer", add_small_consumer)
    monkeypatch.setattr(JetStream, "pull", count_pulls)
    address = Address("topic", "x", "crowded")
    got: list[list[Delivery]] = [[], []]

    def take(to: list[Delivery], delivery: Delivery) -> None:
        to.append(delivery)
        delivery.accept()

    for to in got:
        transports().driver.subscribe([address], partial(take, to), prefetch=1).ready.result(15)
    wait_for(lambda: len(asked) == 2 and min(asked.values()) >= 4)
    assert max(asked.values()) < 100  # Without a pause, it is the time of an answer for each.
    send(transports().driver, address, *(str(number) for number in range(20)))
    wait_for(lambda: sum(map(len, got)) == 20, 30)


def test_a_message_larger_than_a_pull_request_arrives(
    transports: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, in its place between smaller ones."""
    monkeypatch.setattr(session, "MAX_IN_FLIGHT", 2000)
    address = Address("fanout", "x", "too-large")
    got: list[Delivery] = []
    driver = transports().driver
    driver.subscribe([address], got.append, prefetch=20).ready.result(15)
    sizes = [1, 100_000, 100_000, 900, 900, 900, 100_000, 1]
    for size in sizes:
        driver.send(address, Message(bytes(size), "t", "i", 60.0), mandatory=False).result(15)
    wait_for(lambda: len(got) == len(sizes))
    assert [len(delivery.message.body) for delivery in got] == sizes
    assert not any(delivery.redelivered for delivery in got)


# What NATS forgets


def state_of(server: Any, address: Address) -> pathlib.Path:
    """The file in which NATS keeps what the consumer of a topic has delivered."""
    path: pathlib.Path = server.store / "jetstream/$G/streams" / stream_of(address) / "obs/topic/o.dat"
    return path


def send(driver: Any, address: Address, *bodies: str) -> None:
    """Return when NATS has them."""
    sent = [driver.send(address, Message(body.encode(), "t", body, 60.0), mandatory=True) for body in bodies]
    for future in sent:
        future.result(30)


def delete(server: Any, stream: str) -> None:
    """Delete a stream, as an operator would."""

    async def work() -> None:
        client = await nats.connect(server.url)
        await client.jetstream().delete_stream(stream)
        await client.close()

    asyncio.run(work())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("left", ["nothing", "what was true before"])
def test_what_nats_forgets_at_a_restart_comes_as_redelivered(
    transports: Callable[..., Transport], server: Any, number: signal.Signals, left: str
) -> None:
    """NATS may leave an empty or an old file of what was delivered: another server is warned nevertheless."""
    address = Address("topic", "x", f"restart-{number.name}-{left}")
    first = transports()
    got: list[Delivery] = []
    first.driver.subscribe([address], got.append, prefetch=1).ready.result(15)
    before = state_of(server, address).read_bytes()
    send(first.driver, address, "a")
    wait_for(lambda: got)
    assert not got[0].redelivered
    server.stop(number)
    first.cleanup()  # What it held it cannot give back.
    state_of(server, address).write_bytes(b"" if left == "nothing" else before)
    server.start()
    again: list[Delivery] = []
    second = transports().driver
    second.subscribe([address], again.append, prefetch=5).ready.result(15)
    send(second, address, "b")
    wait_for(lambda: len(again) == 2, 30)
    found = {delivery.message.id: (delivery.redelivered, delivery.attempts) for delivery in again}
    assert found == {"a": (True, 1), "b": (False, 0)}


@pytest.mark.parametrize(
    ("address", "mandatory"),
    [(Address("topic", "x", "shuts-down"), True), (Address("fanout", "x", "shuts-down"), False)],
    ids=["topic", "fanout"],
)
def test_a_stream_that_takes_nothing_for_a_moment_gets_what_was_sent(
    transports: Callable[..., Transport], server: Any, address: Address, mandatory: bool
) -> None:
    """NATS says that nobody listens when it shuts down, before it closes connections: its streams are stopped first."""
    driver = transports().driver
    got: list[Delivery] = []
    driver.subscribe([address], got.append, prefetch=1).ready.result(15)

    async def send_while_it_takes_nothing() -> Future[Sent]:
        client = await nats.connect(server.url)
        streams = client.jetstream()
        config = (await streams.stream_info(stream_of(address))).config
        await streams.update_stream(config.evolve(subjects=[f"nobody.sends.{address.kind}"]))
        looked = await client.subscribe(f"$JS.API.STREAM.INFO.{stream_of(address)}")
        sent = driver.send(address, Message(b"x", "a/b", "late", 60.0), mandatory=mandatory)
        await looked.next_msg(15)
        await streams.update_stream(config)
        await client.close()
        return sent

    assert asyncio.run(send_while_it_takes_nothing()).result(15) == Sent()
    wait_for(lambda: [delivery.message.id for delivery in got] == ["late"])


def test_what_is_declared_while_the_server_stands_still_is_declared_later(
    transports: Callable[..., Transport], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is stored waits for its whole time, not for one answer of JetStream."""
    monkeypatch.setattr(connection, "API_TIMEOUT", 0.2)
    driver = transports().driver
    send(driver, Address("stored", "x", "first"), "connected")
    server.send_signal(signal.SIGSTOP)
    try:
        sent = driver.send(Address("stored", "x", "second"), Message(b"x", "t", "later", 60.0), mandatory=True)
        with pytest.raises(TimeoutError):
            sent.result(1.0)
    finally:
        server.send_signal(signal.SIGCONT)
    assert sent.result(15) == Sent()


def stop_and_forget(server: Any, address: Address) -> None:
    """Stop NATS, and have it start without knowing what the consumer of a topic has delivered."""
    server.stop()
    state_of(server, address).write_bytes(b"")
    server.start()


def test_every_subscriber_knows_what_was_forgotten(transports: Callable[..., Transport], server: Any) -> None:
    """Also one that comes later, when others have received messages since the restart."""
    address = Address("topic", "x", "doubt")
    first = transports()
    got: list[Delivery] = []
    first.driver.subscribe([address], got.append, prefetch=2).ready.result(15)
    send(first.driver, address, "a", "b")
    wait_for(lambda: len(got) == 2)
    stop_and_forget(server, address)
    first.cleanup()
    for body in ("a", "b"):
        again: list[Delivery] = []
        transports().driver.subscribe([address], again.append, prefetch=1).ready.result(15)
        wait_for(lambda: again)  # noqa: B023
        assert (again[0].message.id, again[0].redelivered) == (body, True)


def test_what_waits_is_not_suspected(
    transports: Callable[..., Transport], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart only as many messages as a mark reaches ahead are suspected although nobody has had them."""
    monkeypatch.setattr(mark, "AHEAD", 2)
    address = Address("topic", "x", "waits")
    first = transports()
    got: list[Delivery] = []
    first.driver.subscribe([address], got.append, prefetch=1).ready.result(15)
    send(first.driver, address, *"abcdefgh")
    wait_for(lambda: got)
    stop_and_forget(server, address)
    first.cleanup()
    again: list[Delivery] = []
    transports().driver.subscribe([address], again.append, prefetch=8).ready.result(15)
    wait_for(lambda: len(again) == 8)
    assert [delivery.message.id for delivery in again if delivery.redelivered] == ["a", "b", "c"]


def test_what_is_stored_later_is_not_suspected(
    transports: Callable[..., Transport], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that came when no mark was in use any more cannot have been delivered."""
    monkeypatch.setattr(mark, "RENEW", 0.0)
    monkeypatch.setattr(mark, "USED", 0.0)
    address = Address("topic", "x", "later")
    first = transports()
    got: list[Delivery] = []
    first.driver.subscribe([address], got.append, prefetch=1).ready.result(15)
    send(first.driver, address, "a")
    wait_for(lambda: got)
    send(first.driver, address, "b")
    stop_and_forget(server, address)
    first.cleanup()
    again: list[Delivery] = []
    transports().driver.subscribe([address], again.append, prefetch=5).ready.result(15)
    wait_for(lambda: len(again) == 2)
    assert {delivery.message.id: delivery.redelivered for delivery in again} == {"a": True, "b": False}


def test_subscribers_share_a_mark(transports: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if each message needs one: all are delivered, each once, in the order in which they came."""
    monkeypatch.setattr(mark, "AHEAD", 0)
    address = Address("topic", "x", "shared")
    got: list[list[Delivery]] = [[], []]

    def take(to: list[Delivery], delivery: Delivery) -> None:
        to.append(delivery)
        delivery.accept()

    for to in got:
        transports().driver.subscribe([address], partial(take, to), prefetch=5).ready.result(15)
    bodies = [f"{n:03}" for n in range(200)]
    send(transports().driver, address, *bodies)
    wait_for(lambda: sum(map(len, got)) == 200, 60)
    assert sorted(delivery.message.id for to in got for delivery in to) == bodies
    for to in got:
        ids = [delivery.message.id for delivery in to]
        assert ids == sorted(ids)
        assert not any(delivery.redelivered for delivery in to)


def test_a_mark_is_never_lowered(
    transports: Callable[..., Transport], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a subscriber that does not know how far another one is, and is given an earlier message again."""
    monkeypatch.setattr(mark, "AHEAD", 0)
    monkeypatch.setattr(mark, "RENEW", 0.0)
    address = Address("topic", "x", "lowered")
    first, second = transports(), transports()
    got: list[list[Delivery]] = [[], []]
    for n, transport in enumerate((first, second)):
        transport.driver.subscribe([address], got[n].append, prefetch=1).ready.result(15)
        send(transport.driver, address, "ab"[n])
        wait_for(lambda: got[n])  # noqa: B023
    send(first.driver, address, "c")
    got[0][0].accept()
    wait_for(lambda: len(got[0]) == 2)
    got[1][0].reject(requeue=True)
    wait_for(lambda: len(got[1]) == 2)
    assert [[delivery.message.id for delivery in to] for to in got] == [["a", "c"], ["b", "b"]]
    stop_and_forget(server, address)
    first.cleanup()
    second.cleanup()
    again: list[Delivery] = []
    transports().driver.subscribe([address], again.append, prefetch=5).ready.result(15)
    wait_for(lambda: len(again) == 2)
    assert all(delivery.redelivered for delivery in again)


def test_a_stream_that_was_deleted_leaves_no_suspicion(
    transports: Callable[..., Transport], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of its messages begin anew, below the mark of the old one."""
    monkeypatch.setattr(mark, "USED", 600.0)
    address = Address("topic", "x", "anew")
    first = transports()
    got: list[Delivery] = []
    first.driver.subscribe([address], got.append, prefetch=5).ready.result(15)
    send(first.driver, address, "a")
    wait_for(lambda: got)
    first.cleanup()
    delete(server, stream_of(address))
    second = transports().driver
    send(second, address._replace(kind="stored"), "b")
    server.stop()
    server.start()
    again: list[Delivery] = []
    second.subscribe([address], again.append, prefetch=5).ready.result(15)
    wait_for(lambda: again)
    assert (again[0].message.id, again[0].redelivered) == ("b", False)


def test_a_message_is_handed_over_after_its_mark(
    transports: Callable[..., Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long NATS takes to confirm it, and also the messages that come meanwhile."""
    store = Connection.store
    seen: list[str] = []

    async def store_late(connection: Connection, subject: str, *args: Any) -> dict[str, Any]:
        answer = await store(connection, subject, *args)
        if subject.startswith("msgbus.mark."):
            await asyncio.sleep(0.2)
            seen.append("mark")
        return answer

    monkeypatch.setattr(Connection, "store", store_late)
    monkeypatch.setattr(mark, "AHEAD", 0)
    monkeypatch.setattr(mark, "RENEW", 0.1)  # It is over before the confirmation comes.
    address = Address("topic", "x", "after")
    driver = transports().driver
    driver.subscribe([address], lambda delivery: seen.append(delivery.message.id), prefetch=9).ready.result(15)
    send(driver, address, *"abc")
    wait_for(lambda: {"a", "b", "c"} <= set(seen))
    assert seen[:2] == ["mark", "a"]
    assert [what for what in seen if what != "mark"] == ["a", "b", "c"]
    assert seen.count("mark") <= 3


def test_without_a_mark_nothing_is_handed_over(transports: Callable[..., Transport], server: Any) -> None:
    """If an operator deletes the stream of the marks, messages wait until there is one again."""
    address = Address("topic", "x", "markless")
    driver = transports().driver
    got: list[Delivery] = []
    driver.subscribe([address], got.append, prefetch=5).ready.result(15)
    delete(server, MARKS)
    send(driver, address, "a")
    wait_for(lambda: got, 30)
    assert got[0].accept()
    asyncio.run(_check_mark(server, mark_of(address, "topic")))


def test_what_is_no_mark_is_reported(transports: Callable[..., Transport], server: Any) -> None:
    """If somebody else has published to a mark's subject, its address is not consumed from, and the state says why."""
    address = Address("topic", "x", "foreign")
    transports().driver.subscribe([address], lambda delivery: None, prefetch=5).ready.result(15)
    asyncio.run(_publish(server, mark_of(address, "topic"), b"[]"))
    driver = transports().driver
    subscription = driver.subscribe([address], lambda delivery: None, prefetch=5)
    wait_for(lambda: f"{mark_of(address, 'topic')} is no mark" in driver.state)
    assert not subscription.ready.done()
    delete(server, MARKS)
    subscription.ready.result(30)


async def _publish(server: Any, subject: str, body: bytes) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().publish(subject, body)
    await client.close()


async def _check_mark(server: Any, subject: str) -> None:
    client = await nats.connect(server.url)
    assert (await client.jetstream().get_last_msg(MARKS, subject)).subject == subject
    await client.close()
