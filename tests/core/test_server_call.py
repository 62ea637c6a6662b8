from __future__ import annotations

import time
import types
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import MessageTooLarge, MessageUndeliverable, SerializationError
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Delivery, Message, Sent
from msgbus.drivers.fake import FakeDriver, get_bus
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import decode_inbox_frame
from msgbus.failures import rebuild_failure
from msgbus.forking import fork_count
from msgbus.message import JSON, KEEPALIVE, Control, Hints, Reply, Request
from msgbus.server_call import STARTED_AFTER, ServerCall
from msgbus.transport import Transport
from tests.support import EVENT_TIMEOUT, new_transport


class Handed(Delivery):
    """How a call came."""

    __slots__ = ()

    def accept(self) -> bool:
        return True

    def reject(self, requeue: bool) -> None:
        raise AssertionError("it is not given back")


class Peer:
    """A client's inbox, and the server that owns the calls."""

    server = "h1"

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.forks = fork_count()
        self.grace = 60.0
        self.frames: list[Reply] = []
        self.ends: list[BaseException | None] = []
        self.inbox = transport.driver.open_inbox(self._on_delivery)

    def _on_delivery(self, delivery: Delivery) -> None:
        frame = decode_inbox_frame(delivery.message.body, delivery.message.content_type)
        assert isinstance(frame, Reply)
        self.frames.append(frame)

    def on_answered(self, _call: ServerCall, error: BaseException | None) -> None:
        self.ends.append(error)

    def call(
        self,
        hints: Hints | None = None,
        monitor: float | None = None,
        reply_to: str | None = None,
        deadline: float | None = None,
    ) -> ServerCall:
        request = Request("m", call_id="c", reply_to=reply_to or self.inbox.address.name, monitor=monitor, hints=hints)
        self.grace = 0.0 if reply_to == "gone" else 60.0
        delivery = Handed(Address("topic", "msgbus", "foo"), Message(b"", JSON, "c"), False, None)
        owner: Any = self
        call = ServerCall(owner, delivery, request, deadline, at_least_once=False)
        call.active = True
        return call

    def take(self) -> list[tuple[str, bool]]:
        """The kinds of the frames that came since, and whether each was the last."""
        found: list[tuple[str, bool]] = [(frame.kind, frame.ending) for frame in self.frames]
        self.frames.clear()
        return found


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A client in memory."""
    transport = new_transport()
    transport.inbox(Loop.now() + 10)  # as a server does before it takes requests
    yield Peer(transport)
    transport.cleanup()


@pytest.mark.parametrize("hints", [Hints(), None], ids=["msgbus", "stock"])
def test_result(peer: Peer, hints: Hints | None) -> None:
    """The answer is one frame, which ends the call; only for a msgbus client does it name the server."""
    call = peer.call(hints)
    call.result({"a": 1})
    frame = peer.frames[0]
    assert (frame.call_id, frame.result, frame.failure, frame.ending) == ("c", {"a": 1}, None, True)
    assert (frame.extended, frame.server) == ((True, "h1") if hints else (False, None))
    assert len(peer.frames) == 1
    assert call.answered
    assert peer.ends == [None]


def failure(frame: Reply) -> Exception:
    """The exception in an answer."""
    assert frame.ending
    assert frame.failure is not None
    return rebuild_failure(frame.failure, ())


def test_a_call_that_is_answered_just_when_it_is_to_be_said_that_it_runs(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays in the table of those that control frames may come for."""
    call = peer.call(Hints())
    inbox = peer.transport.inbox(EVENT_TIMEOUT)

    def while_it_ends(_transport: object) -> str:
        call.result(1)  # On the method's thread.
        call.active = False
        return inbox

    monkeypatch.setattr(type(peer.transport), "inbox_name", property(while_it_ends))
    call.tick(call._last_frame + 2 * STARTED_AFTER)
    assert peer.take() == [("reply", True)]
    assert not peer.transport.server_calls


def test_failure(peer: Peer) -> None:
    """An exception is an answer too."""
    peer.call().error(KeyError("x"))
    assert type(failure(peer.frames[0])) is KeyError
    assert peer.ends == [None]


def test_result_that_cannot_travel(peer: Peer) -> None:
    """A result that cannot be written is answered with an error that says so."""
    peer.call().result(object())
    error = failure(peer.frames[0])
    assert type(error) is SerializationError
    assert "the result of 'm'" in str(error)
    assert peer.ends == [None]


@pytest.mark.parametrize("times", [1, 2])
def test_result_that_is_too_large(peer: Peer, times: int) -> None:
    """An answer that is larger than the message system takes is answered with that; not even that fitting, it ends."""
    too_large = MessageTooLarge("more than it takes")
    get_bus(peer.transport.url).fail_next(too_large, times)
    peer.call(Hints()).result("x")
    if times == 1:
        assert type(failure(peer.frames[0])) is MessageTooLarge
        assert peer.ends == [None]
    else:
        assert not peer.frames
        assert peer.ends == [too_large]


def test_an_answer_that_reaches_nobody(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """If the client's inbox does not exist, that is logged, and the call's owner gets the error."""
    peer.call(reply_to="gone").result(5)
    assert [type(end) for end in peer.ends] == [MessageUndeliverable]
    assert "could not be delivered to inbox 'gone'" in caplog.text


def test_signs_of_life_for_a_msgbus_client(peer: Peer) -> None:
    """The client of a call that runs for a while is notified once, with an inbox, and then sent keepalives."""
    call = peer.call(Hints())
    begin = call._last_frame
    call.tick(begin + STARTED_AFTER / 2)
    assert peer.take() == []
    call.tick(begin + STARTED_AFTER + 0.01)
    assert (peer.frames[0].inbox, peer.frames[0].server) == (peer.transport.inbox(0.0), "h1")
    assert peer.take() == [("started", False)]
    last = call._last_frame
    call.tick(last + KEEPALIVE / 2)
    assert peer.take() == []
    call.tick(last + KEEPALIVE + 0.01)
    assert peer.take() == [("keepalive", False)]
    call.send_started()
    assert peer.take() == []


def test_a_server_sends_a_keepalive_when_its_connection_is_back(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and once: the client may have been cut off too, and wonders whether its request got lost."""
    call = peer.call(Hints())
    call.send_started()
    peer.take()
    up_since = call._last_frame + 1
    monkeypatch.setattr(FakeDriver, "up_since", up_since)
    monkeypatch.setattr("msgbus.server_call.Loop.now", lambda: up_since + 1)
    call.tick(up_since + 1)
    call.tick(up_since + 2)
    assert peer.take() == [("keepalive", False)]


@pytest.mark.parametrize("confirmed", [True, False])
def test_an_answer_is_sent_until_it_is_confirmed(peer: Peer, monkeypatch: pytest.MonkeyPatch, confirmed: bool) -> None:
    """Again after 1, 2 and 4 seconds and then every 5, where a client asks for that; at the deadline it is over."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr("msgbus.server_call.Loop", types.SimpleNamespace(now=lambda: clock.now))
    call = peer.call(Hints(confirms=True), deadline=1025.0)
    call.result(5)
    sent_at = []
    while clock.now < 1024.0:
        if peer.take():
            sent_at.append(clock.now - 1000.0)
        clock.now += 0.5
        call.tick(clock.now)
    assert sent_at == [0.0, 1.0, 3.0, 7.0, 12.0, 17.0, 22.0]
    assert not peer.ends
    if confirmed:
        call.on_control(Control("c", "confirm"))
        assert peer.ends == [None]
    clock.now = 1050.0
    call.tick(clock.now)
    assert peer.take() == []
    assert peer.ends == [None]


@pytest.mark.parametrize(("deadline", "waits"), [(1000.0, 1000.0), (5.0, 60.0), (None, 60.0)])
def test_an_answer_waits_as_long_as_its_client(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, deadline: float | None, waits: float
) -> None:
    """While this side is cut off an answer waits until the call's deadline, and for the grace in any case."""
    sent: list[Message] = []

    def take(_driver: FakeDriver, _address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        sent.append(message)
        return Future()

    monkeypatch.setattr(FakeDriver, "send", take)
    peer.call(deadline=None if deadline is None else time.monotonic() + deadline).result(5)
    assert sent[0].ttl == pytest.approx(waits, abs=EVENT_TIMEOUT / 2)


@pytest.mark.parametrize(
    ("monitor", "after", "shows"),
    [(None, 1000.0, False), (0, 1000.0, False), (10, 4.9, False), (10, 5.1, True), (0.5, 0.6, True), (3, 1.6, True)],
)
def test_signs_of_life_for_a_stock_client(peer: Peer, monitor: float | None, after: float, shows: bool) -> None:
    """A stock client is sent a reply that ends nothing, twice in the time that it asked for, and never unasked."""
    call = peer.call(monitor=monitor)
    call.tick(call._last_frame + after)
    assert peer.take() == ([("reply", False)] if shows else [])


@pytest.mark.parametrize("how", ["answered", "cancelled"])
def test_no_sign_of_life_that_nobody_needs(peer: Peer, how: str) -> None:
    """After the answer, and for a client that has cancelled, there is no keepalive."""
    call = peer.call(Hints())
    if how == "answered":
        call.result(5)
    else:
        call.on_control(Control("c", "cancel"))
    peer.take()
    call.tick(call._last_frame + 1000)
    assert peer.take() == []


@pytest.mark.parametrize("how", ["result", "failure"])
def test_no_answer_that_nobody_wants(peer: Peer, how: str) -> None:
    """The answer to a call that its client has cancelled is not sent, and the call is done with."""
    call = peer.call(Hints())
    call.on_control(Control("c", "cancel"))
    if how == "result":
        call.result(5)
    else:
        call.error(ValueError("x"))
    assert peer.take() == []
    assert peer.ends == [None]


@pytest.mark.parametrize(("hints", "kinds"), [(Hints(), [("declined", False)]), (None, [])])
def test_declined(peer: Peer, hints: Hints | None, kinds: list[Any]) -> None:
    """A msgbus client is notified that its request is not run; a stock one would not understand it."""
    peer.call(hints).decline()
    assert peer.take() == kinds


def test_stream(peer: Peer) -> None:
    """A stream begins with the inbox for its control frames; its items and its end follow."""
    call = peer.call(Hints(window=10))
    call.stream(iter_of(range(3)))
    assert [frame.items for frame in peer.frames] == [None, [0], [1], [2], []]
    assert peer.take() == [("started", False)] + [("items", False)] * 3 + [("reply", True)]
    assert peer.ends == [None]


def iter_of(values: Any) -> Any:
    """A generator of some values."""
    yield from values


def test_stream_that_was_cancelled_before_it_began(peer: Peer) -> None:
    """A cancel that comes before there is a stream ends it all the same."""
    call = peer.call(Hints(window=10))
    call.on_control(Control("c", "cancel"))
    call.stream(iter_of(range(3)))
    assert peer.take() == [("started", False)]
    assert call.cancelled
    assert peer.ends == [None]


def test_stream_that_fails(peer: Peer) -> None:
    """An exception of the generator ends the stream, after the items before it."""

    def items() -> Any:
        yield 1
        raise KeyError("x")

    call = peer.call(Hints(window=10))
    with pytest.raises(KeyError) as caught:
        call.stream(items())
    call.error(caught.value)
    assert type(failure(peer.frames[-1])) is KeyError
    assert [frame.items for frame in peer.frames] == [None, [1], []]
    assert peer.ends == [None]


def test_a_frame_that_gets_lost(peer: Peer) -> None:
    """A keepalive that reaches nobody is no error."""
    call = peer.call(Hints(), reply_to="gone")
    call.send_started()
    assert peer.ends == []


def test_address_of_the_client(peer: Peer) -> None:
    """Answers go to the inbox that the request names, and nowhere else."""
    other = Peer(peer.transport)
    peer.call(reply_to=other.inbox.address.name).result(5)
    assert peer.frames == []
    assert len(other.frames) == 1
    assert other.inbox.address == Address("inbox", name=other.inbox.address.name)


def test_an_answer_for_a_client_that_comes_back(peer: Peer) -> None:
    """That nobody is at the client's inbox is tried again: it may be reconnecting, and waits for its answer."""
    get_bus(peer.transport.url).fail_next(MessageUndeliverable("nobody"))
    peer.call(Hints()).result(5)
    until(lambda: peer.ends, "the answer is delivered", EVENT_TIMEOUT)
    assert peer.ends == [None]
    assert [frame.result for frame in peer.frames] == [5]
