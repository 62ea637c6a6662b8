"""Which server a call listens to, whom it cancels, and when it is sent again: against servers that the test plays."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import (
    MessageUndeliverable,
    Target,
    Transport,
    TransportUnavailable,
    base_transport,
    get_rpc_client,
    pending,
    sending,
)
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Address, Capability, Delivery, Message, Sent
from msgbus.drivers.fake import FakeDriver
from msgbus.encoding import decode_inbox_frame, decode_request, encode_reply
from msgbus.message import JSON, Control, Reply, Request
from tests.support import EVENT_TIMEOUT, new_transport


class Connection:
    """Since when the connection of every transport in memory is up; the test says so."""

    def __init__(self) -> None:
        self.up_since: float | None = 0.0


class PlayedServer:
    """What a client hears of one server, and what it has that server do."""

    def __init__(self, peer: Transport, name: str) -> None:
        self.name = name
        self.controls: list[Control] = []
        self._peer = peer
        self._inbox = peer.driver.open_inbox(self._on_control)

    def _on_control(self, delivery: Delivery) -> None:
        frame = decode_inbox_frame(delivery.message.body, delivery.message.content_type)
        assert isinstance(frame, Control)
        self.controls.append(frame)

    def say(self, request: Request, kind: Any, **more: Any) -> None:
        assert request.call_id is not None
        assert request.reply_to is not None
        reply = Reply(request.call_id, kind, extended=True, server=self.name, **more)
        message = Message(encode_reply(reply, JSON), JSON, "id")
        self._peer.send(Address("inbox", name=request.reply_to), message, mandatory=True).result(EVENT_TIMEOUT)

    def begin(self, request: Request) -> None:
        self.say(request, "started", inbox=self._inbox.address.name)

    def answer(self, request: Request) -> None:
        self.say(request, "reply", result=self.name, ending=True)

    def kinds(self) -> list[str]:
        return [control.kind for control in self.controls]


class Play:
    """A topic that takes requests, and two servers that the test plays."""

    def __init__(self) -> None:
        self.transport = new_transport()
        self.requests: list[Request] = []
        self.first = PlayedServer(self.transport, "h1")
        self.second = PlayedServer(self.transport, "h2")
        self.transport.driver.subscribe([Address("topic", "msgbus", "foo")], self._on_request, prefetch=10)

    def _on_request(self, delivery: Delivery) -> None:
        delivery.accept()
        self.requests.append(decode_request(delivery.message.body, delivery.message.content_type))

    def call(self, delivery: Any, timeout: float = EVENT_TIMEOUT) -> Task:
        """A call that waits, once its request has come."""
        caller = get_rpc_client(self.transport, Target(topic="foo"), timeout=timeout, delivery=delivery)
        task = Task(caller.call, {}, "work", key="k")
        self.wait(1)
        return task

    def wait(self, count: int) -> Request:
        """The last of so many requests."""
        until(lambda: len(self.requests) >= count, f"{count} requests", EVENT_TIMEOUT)
        return self.requests[-1]


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    """What the test says of the connection, and no long waits."""
    made = Connection()
    monkeypatch.setattr(FakeDriver, "up_since", property(lambda _driver: made.up_since))
    monkeypatch.setattr(base_transport, "REPEAT_AFTER", 0.05)
    monkeypatch.setattr(base_transport, "CONNECTION_CHECK", 0.01)
    return made


@pytest.fixture
def play() -> Iterator[Play]:
    """See `Play`."""
    made = Play()
    yield made
    made.transport.cleanup()


def test_a_second_server_is_cancelled_under_at_most_once(play: Play) -> None:
    """One server runs an at_most_once call. Another that says that it does is cancelled, the first is not."""
    task = play.call("at_most_once")
    play.first.begin(play.requests[0])
    play.second.begin(play.requests[0])
    until(lambda: play.second.kinds() == ["cancel"], "the second server is cancelled", EVENT_TIMEOUT)
    play.first.answer(play.requests[0])
    assert task.result() == "h1"
    assert play.first.kinds() == []


@pytest.mark.parametrize("winner", ["h1", "h2"])
def test_the_loser_is_cancelled_under_at_least_once(play: Play, winner: str) -> None:
    """Two servers run an at_least_once call: the first answer is its value, and only then the other is cancelled."""
    task = play.call("at_least_once")
    request = play.requests[0]
    for server in (play.first, play.second):
        server.begin(request)
    until(lambda: len(play.transport.router.waiting()[0].servers) == 2, "both are known", EVENT_TIMEOUT)
    first, other = (play.first, play.second) if winner == "h1" else (play.second, play.first)
    assert first.kinds() == other.kinds() == []
    first.answer(request)
    assert task.result() == winner
    until(lambda: other.kinds() == ["cancel"], "the other server is cancelled", EVENT_TIMEOUT)
    assert "cancel" not in first.kinds()


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_a_call_that_times_out_cancels_all_who_run_it(play: Play, delivery: Any) -> None:
    """Nobody wants the answer any more."""
    task = play.call(delivery, timeout=0.5)
    play.first.begin(play.requests[0])
    if delivery == "at_least_once":
        play.second.begin(play.requests[0])
    assert task.error() is not None
    until(lambda: play.first.kinds() == ["cancel"], "the first server is cancelled", EVENT_TIMEOUT)
    if delivery == "at_least_once":
        until(lambda: play.second.kinds() == ["cancel"], "the second server is cancelled", EVENT_TIMEOUT)


def test_an_unanswered_request_is_sent_again_when_the_connection_is_back(play: Play, connection: Connection) -> None:
    """Under at_least_once, with the same id, less time, and the word that it comes again; once for each reconnect."""
    task = play.call("at_least_once")
    connection.up_since = time.monotonic()
    again = play.wait(2)
    first = play.requests[0]
    assert (again.call_id, again.unique_id, again.args) == (first.call_id, first.unique_id, first.args)
    assert first.hints is not None
    assert again.hints is not None
    assert (first.hints.again, again.hints.again) == (False, True)
    assert again.hints.ttl is not None
    assert first.hints.ttl is not None
    assert again.hints.ttl < first.hints.ttl
    connection.up_since = time.monotonic()
    play.wait(3)
    play.first.answer(again)
    assert task.result() == "h1"


def test_a_durable_message_system_is_given_more_time(
    play: Play, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a request that nobody has begun mostly waits on disk: it is sent again when nothing is heard for longer."""
    monkeypatch.setattr(FakeDriver, "capabilities", FakeDriver.capabilities | {Capability.DURABLE})
    monkeypatch.setattr(base_transport, "LOST_AFTER", 1.5)
    task = play.call("at_least_once", timeout=1.0)
    connection.up_since = time.monotonic()
    assert task.error() is not None
    assert len(play.requests) == 1
    task = play.call("at_least_once")
    play.wait(2)
    connection.up_since = time.monotonic()
    play.first.answer(play.wait(3))
    assert task.result() == "h1"


def test_an_at_most_once_request_is_not_sent_again(play: Play, connection: Connection) -> None:
    """It might run twice."""
    task = play.call("at_most_once", timeout=1.0)
    connection.up_since = time.monotonic()
    assert task.error() is not None
    assert len(play.requests) == 1


def test_a_request_whose_server_was_heard_of_is_not_sent_again(play: Play, connection: Connection) -> None:
    """Not after a reconnect either."""
    task = play.call("at_least_once", timeout=1.0)
    connection.up_since = time.monotonic()
    play.first.begin(play.requests[0])
    assert task.error() is not None
    assert len(play.requests) == 1


def test_a_request_whose_server_has_fallen_silent_is_sent_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under at_least_once, to any server; the answer of the silent one would count too."""
    monkeypatch.setattr(pending, "LOST_AFTER", 0.2)
    task = play.call("at_least_once")
    play.first.begin(play.requests[0])
    again = play.wait(2)
    play.second.begin(again)
    play.first.answer(play.requests[0])
    assert task.result() == "h1"


def fail_requests(monkeypatch: pytest.MonkeyPatch, outcome_of: Callable[[int], Exception | None]) -> None:
    """Have the sending of the first request, the second and so on end as the test says; 0 is the first."""
    send, count = FakeDriver.send, itertools.count()

    def fail(driver: FakeDriver, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        error = outcome_of(next(count)) if address.kind == "topic" else None
        if error is None:
            return send(driver, address, message, mandatory=mandatory)
        if not isinstance(error, MessageUndeliverable):  # It has arrived all the same.
            send(driver, address, message, mandatory=mandatory)
        failed: Future[Sent] = Future()
        failed.set_exception(error)
        return failed

    monkeypatch.setattr(FakeDriver, "send", fail)


def test_a_request_that_is_sent_again_is_tried_until_its_deadline(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may be there at that moment: the server that has fallen silent was the only one, until another comes."""
    monkeypatch.setattr(pending, "LOST_AFTER", 0.2)
    fail_requests(monkeypatch, lambda number: MessageUndeliverable("nobody") if number in (1, 2) else None)
    task = play.call("at_least_once", timeout=5.0)
    play.first.begin(play.requests[0])
    play.second.answer(play.wait(2))
    assert task.result() == "h2"


def test_an_answered_request_is_not_sent_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose sending had an unknown outcome has arrived and been answered: there is no further copy of it."""
    lost = TransportUnavailable("cut", maybe_delivered=True)
    fail_requests(monkeypatch, lambda _number: lost)
    monkeypatch.setattr(sending, "RETRY_DELAY", 1.0)
    task = play.call("at_least_once")
    play.first.answer(play.requests[0])
    assert task.result() == "h1"
    later = threading.Event()
    play.transport.loop.call_later(1.0, later.set)  # It is due after the next try would be.
    assert later.wait(EVENT_TIMEOUT)
    assert len(play.requests) == 1


def test_nobody_there_is_final_on_the_first_connection(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just after it has been made, too: nobody was connected before, and may come back."""
    connection.up_since = time.monotonic()
    tries: list[int] = []

    def outcome_of(number: int) -> Exception:
        tries.append(number)
        return MessageUndeliverable("nobody")

    fail_requests(monkeypatch, outcome_of)
    made = new_transport()
    caller = get_rpc_client(made, Target(topic="foo"), timeout=1.0, delivery="at_least_once")
    for verb in (caller.call, caller.cast):
        with pytest.raises(MessageUndeliverable):
            verb({}, "work")
    assert tries == [0, 1]
    made.cleanup()


def test_nobody_there_is_not_final_just_after_a_reconnect(connection: Connection) -> None:
    """The servers may come back a moment later than the client; on its first connection nobody there is final."""
    made = new_transport()
    caller = get_rpc_client(made, Target(topic="foo"), timeout=EVENT_TIMEOUT, delivery="at_least_once")
    with pytest.raises(MessageUndeliverable):
        caller.call({}, "work")
    connection.up_since = time.monotonic()
    task = Task(caller.call, {}, "work")
    late: list[Request] = []

    def on_request(delivery: Delivery) -> None:
        delivery.accept()
        late.append(decode_request(delivery.message.body, delivery.message.content_type))

    until(lambda: len(made.router) == 1, "the call waits", EVENT_TIMEOUT)
    made.driver.subscribe([Address("topic", "msgbus", "foo")], on_request, prefetch=10)
    until(lambda: late, "the request", EVENT_TIMEOUT)
    PlayedServer(made, "h1").answer(late[0])
    assert task.result() == "h1"
    made.cleanup()
