"""Answers on a message system that may lose what is in an inbox, with its connection: a bus in memory that does so."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import MessagingTimeout, RPCClient, Target, Transport, get_rpc_client, get_rpc_server
from msgbus.conformance.checks.wire import envelope, raw
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Capability, Message, Sent
from msgbus.drivers.fake import FakeDriver
from msgbus.encoding import encode_repeat
from tests.support import EVENT_TIMEOUT, new_transport


class Losses:
    """What is taken and never delivered: so many messages of each kind that goes to an inbox."""

    def __init__(self) -> None:
        self.answers = 0
        self.confirmations = 0
        self.confirmed = 0

    def send(self, driver: FakeDriver, address: Address, message: Message, mandatory: bool) -> Future[Sent] | None:
        """A future that is done, for what gets lost; None for all else."""
        kind = message.id.rpartition(".")[2] if address.kind == "inbox" else ""
        self.confirmed += kind == "confirm"
        if kind == "reply" and self.answers:
            self.answers -= 1
        elif kind == "confirm" and self.confirmations:
            self.confirmations -= 1
        else:
            return None
        taken: Future[Sent] = Future()
        taken.set_result(Sent())
        return taken


class Endpoint:
    """Counts what it runs."""

    def __init__(self) -> None:
        self.runs = 0

    def work(self, _ctxt: object, value: Any = None) -> Any:
        """Return the messages that arrived."""
        self.runs += 1
        return value

    def break_(self, _ctxt: object) -> None:
        """Raise something."""
        self.runs += 1
        raise KeyError("x")


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    """A bus in memory that does not keep what is in inboxes."""
    made, send = Losses(), FakeDriver.send

    def lossy(self: FakeDriver, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        lost = made.send(self, address, message, mandatory)
        return send(self, address, message, mandatory=mandatory) if lost is None else lost

    monkeypatch.setattr(FakeDriver, "capabilities", FakeDriver.capabilities - {Capability.INBOX_STORAGE})
    monkeypatch.setattr(FakeDriver, "send", lossy)
    return made


@pytest.fixture
def endpoint() -> Endpoint:
    """What is called."""
    return Endpoint()


@pytest.fixture
def transport(endpoint: Endpoint) -> Iterator[Transport]:
    """Of a server and its clients."""
    made = new_transport()
    server = get_rpc_server(made, Target(topic="foo", server="h1"), [endpoint])
    server.start()
    yield made
    server.stop()
    assert server.wait(EVENT_TIMEOUT) == 0, "a request is unfinished"
    made.cleanup()


def client_of(transport: Transport, timeout: float, delivery: Any = "at_least_once") -> RPCClient:
    """A client of the server."""
    return get_rpc_client(transport, Target(topic="foo"), timeout=timeout, delivery=delivery)


def is_settled(transport: Transport) -> bool:
    """Whether the message system has nothing more of the topic."""
    depth = transport.inspect(Address("topic", "msgbus", "foo"), EVENT_TIMEOUT)
    return depth is not None and depth.messages == 0 and not transport.server_calls


def test_an_answer_that_got_lost_is_sent_again(losses: Losses, endpoint: Endpoint, transport: Transport) -> None:
    """Under at_least_once a call has its value though its answer got lost twice, and its method was run once."""
    client = client_of(transport, EVENT_TIMEOUT)
    losses.answers = 2
    assert client.call({}, "work", value=5) == 5
    assert endpoint.runs == 1
    until(lambda: is_settled(transport), "the request is done with")


def test_an_exception_that_got_lost_is_sent_again(losses: Losses, endpoint: Endpoint, transport: Transport) -> None:
    """So is what a method raises."""
    losses.answers = 1
    with pytest.raises(KeyError):
        client_of(transport, EVENT_TIMEOUT).call({}, "break_")
    assert endpoint.runs == 1


def test_a_confirmation_that_got_lost_is_asked_for_again(losses: Losses, transport: Transport) -> None:
    """A client confirms each copy of an answer, though nobody waits for it any more."""
    losses.confirmations = 2
    assert client_of(transport, EVENT_TIMEOUT).call({}, "work", value=5) == 5
    assert not is_settled(transport)
    until(lambda: is_settled(transport), "the request is done with")
    assert losses.confirmed == 3


def test_a_confirmed_request_is_not_run_for_a_copy(
    losses: Losses, transport: Transport, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that its client has sent for want of an answer may come after that answer: then it is not run."""
    bodies: list[Message] = []
    send = FakeDriver.send

    def note(self: FakeDriver, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        if address.kind == "topic":
            bodies.append(message)
        return send(self, address, message, mandatory=mandatory)

    monkeypatch.setattr(FakeDriver, "send", note)
    assert client_of(transport, EVENT_TIMEOUT).call({}, "work", value=5) == 5
    until(lambda: is_settled(transport), "the request is done with")
    copy = encode_repeat(bodies[0].body, bodies[0].content_type, EVENT_TIMEOUT)
    again = Message(copy, bodies[0].content_type, bodies[0].id)
    transport.send(Address("topic", "msgbus", "foo"), again, mandatory=True).result(EVENT_TIMEOUT)
    until(lambda: is_settled(transport), "the copy is done with")
    assert endpoint.runs == 1


def test_an_answer_that_is_never_confirmed_ends_with_the_call(
    losses: Losses, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """After the deadline nobody waits for the answer: the request is done with, and the log says so."""
    losses.confirmations = 1000
    with caplog.at_level(logging.WARNING):
        assert client_of(transport, 1.5).call({}, "work", value=5) == 5
        assert not is_settled(transport)
        until(lambda: is_settled(transport), "the request is done with", 5)
    assert "never confirmed" in caplog.text


def test_a_client_that_gives_up_is_not_answered_any_more(losses: Losses, transport: Transport) -> None:
    """The request of a call that timed out is done with at its deadline."""
    losses.answers = 1000
    with pytest.raises(MessagingTimeout):
        client_of(transport, 1.5).call({}, "work")
    until(lambda: is_settled(transport), "the request is done with", 5)


def test_two_requests_of_one_id(losses: Losses, transport: Transport, endpoint: Endpoint) -> None:
    """Of a peer that uses one call id twice, which msgbus never does, both requests are done with at their deadline."""
    hints = {"ttl": 1.5, "at": time.time(), "policy": "at_least_once", "confirms": True}
    reply_to = transport.inbox(EVENT_TIMEOUT)
    for unique_id in ("a" * 32, "b" * 32):
        request = {"method": "work", "args": {}, "_unique_id": unique_id, "_msg_id": "c" * 32, "_reply_q": reply_to}
        losses.answers = 2
        body = envelope({**request, "_msgbus": hints})
        transport.driver.send(Address("topic", "msgbus", "foo"), raw(body), mandatory=True).result(EVENT_TIMEOUT)
    until(lambda: endpoint.runs == 2, "both requests run")
    until(lambda: is_settled(transport), "both requests are done with", 5)


def test_at_most_once_does_not_ask_for_confirmation(losses: Losses, transport: Transport) -> None:
    """There a lost answer is lost, and a call costs two messages."""
    client = client_of(transport, 1.0, "at_most_once")
    assert client.call({}, "work", value=5) == 5
    assert losses.confirmed == 0
    losses.answers = 1
    with pytest.raises(MessagingTimeout):
        client.call({}, "work", value=5)


def test_a_lost_connection_is_named_in_the_timeout(
    losses: Losses, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says that the answer may have been lost with the connection, and what prevents that."""
    losses.answers = 1
    monkeypatch.setattr(FakeDriver, "up_since", float("inf"))
    with pytest.raises(MessagingTimeout, match="lost with it, which does not happen under delivery='at_least_once'"):
        client_of(transport, 1.0, "at_most_once").call({}, "work", value=5)


@pytest.mark.parametrize(
    ("keeps", "confirmed"),
    [
        ({Capability.INBOX_STORAGE, Capability.DURABLE}, 0),
        ({Capability.INBOX_STORAGE}, 1),
        ({Capability.DURABLE}, 1),
        (set(), 1),
    ],
    ids=["both", "inbox_storage", "durable", "neither"],
)
def test_inboxes_that_keep_need_no_confirmation(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, keeps: set[Capability], confirmed: int
) -> None:
    """Where nothing gets lost with a connection or with the message system, no answer is confirmed; else each is."""
    losses, send = Losses(), FakeDriver.send
    others = FakeDriver.capabilities - {Capability.INBOX_STORAGE, Capability.DURABLE}
    monkeypatch.setattr(FakeDriver, "capabilities", others | keeps)

    def count(self: FakeDriver, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        losses.send(self, address, message, mandatory)
        return send(self, address, message, mandatory=mandatory)

    monkeypatch.setattr(FakeDriver, "send", count)
    assert client_of(transport, EVENT_TIMEOUT).call({}, "work", value=5) == 5
    until(lambda: is_settled(transport), "the request is done with")
    assert losses.confirmed == confirmed
