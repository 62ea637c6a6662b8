from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import MessagingTimeout, RPCClient, Target, Transport, get_rpc_client, get_rpc_server, streams
from msgbus.base_client import STREAM_BYTES, STREAM_WINDOW
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Delivery, Message
from msgbus.encoding import decode_inbox_frame, decode_request, encode_reply
from msgbus.message import FIRST_WINDOW, JSON, MSGPACK, Control, Reply
from tests.support import EVENT_TIMEOUT, VirtualClock, new_transport


class PlayedServer:
    """Takes requests for streams and control frames, and answers what the test says."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.controls: list[Control] = []
        self.content_type = {"json": JSON, "msgpack": MSGPACK}[transport.conf.rpc_codec]
        transport.driver.subscribe([Address("topic", "msgbus", "foo")], self._on_request, prefetch=10)
        self.inbox = transport.driver.open_inbox(self._on_control)

    def _on_request(self, delivery: Delivery) -> None:
        delivery.accept()
        self.request = decode_request(delivery.message.body, delivery.message.content_type)

    def _on_control(self, delivery: Delivery) -> None:
        frame = decode_inbox_frame(delivery.message.body, delivery.message.content_type)
        assert isinstance(frame, Control)
        self.controls.append(frame)

    def say(self, kind: Any, **more: Any) -> None:
        assert self.request.call_id is not None
        assert self.request.reply_to is not None
        reply = Reply(self.request.call_id, kind, extended=True, server="h1", **more)
        message = Message(encode_reply(reply, self.content_type), self.content_type, "id")
        self.transport.send(Address("inbox", name=self.request.reply_to), message, mandatory=True).result(0)

    def started(self) -> None:
        self.say("started", inbox=self.inbox.address.name)

    def kinds(self) -> list[tuple[str, int]]:
        return [(control.kind, control.taken) for control in self.controls]


@pytest.fixture(params=["json", "msgpack"])
def played(request: pytest.FixtureRequest) -> Iterator[PlayedServer]:
    """A server that the test plays, once with each codec."""
    transport = new_transport(rpc_codec=request.param)
    yield PlayedServer(transport)
    transport.cleanup()


@pytest.fixture
def client(played: PlayedServer) -> RPCClient:
    """A client of that server."""
    return get_rpc_client(played.transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)


def test_the_request_goes_out_at_once(played: PlayedServer, client: RPCClient) -> None:
    """`multicall` sends its request before anything is taken from the stream, with the client's window."""
    stream = client.multicall({}, "count", to=5)
    assert played.request.method == "count"
    assert played.request.window == STREAM_WINDOW
    assert played.request.hints is not None
    assert played.request.hints.window_bytes == STREAM_BYTES
    stream.close()


def test_credit_goes_to_the_server(played: PlayedServer, client: RPCClient) -> None:
    """Whenever half of what the server may send has been taken, credit is sent, with the total."""
    stream = client.multicall({}, "count")
    played.started()
    played.say("items", items=list(range(100)), seq=0)
    for number in range(49):
        assert next(stream) == number
    assert played.kinds() == []
    next(stream)
    assert played.kinds() == [("credit", 50)]
    for _ in range(50):
        next(stream)
    assert played.kinds() == [("credit", 50), ("credit", 100)]
    stream.close()
    assert played.kinds() == [("credit", 50), ("credit", 100), ("cancel", 100)]


def test_credit_is_sent_for_large_items(played: PlayedServer, client: RPCClient) -> None:
    """A server that waits since the items are large is given credit long before it has sent many of them."""
    with client.multicall({}, "count") as stream:
        played.started()
        for seq in range(3):
            played.say("items", items=["x" * (STREAM_BYTES // 4 + 1)] * 2, seq=2 * seq)
        for _ in range(2):
            assert played.kinds() == []
            next(stream)
        assert played.kinds() == [("credit", 2)]
        next(stream)
        assert played.kinds() == [("credit", 2)]


def test_the_timeout_of_an_item_says_how_long_that_item_was_waited_for(played: PlayedServer, client: RPCClient) -> None:
    """Not how long the stream has been open; and how many items there were before."""
    stream = client.prepare(timeout=0.5).multicall({}, "count")
    played.started()
    played.say("items", items=[0, 1], seq=0)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(MessagingTimeout, match=r"no item within 0\.5 s, after 2 items over .*server 'h1' runs it"):
        next(stream)


def test_the_deadline_bounds_the_request_too(played: PlayedServer, client: RPCClient) -> None:
    """A stream whose deadline comes before the timeout of its first item does not wait longer to be sent, nor there."""
    client.prepare(deadline=10.0, timeout=1000.0).multicall({}, "count").close()
    hints = played.request.hints
    assert hints is not None
    assert hints.ttl is not None
    assert 0 < hints.ttl <= 10.0
    with pytest.raises(MessagingTimeout, match=r"'count' on topic 'foo' .*: nothing was sent: the deadline has"):
        client.prepare(deadline=0.0).multicall({}, "count")


def test_the_deadline_ends_a_stream_whose_items_wait(
    played: PlayedServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the deadline of the whole a slow reader gets no more items, though there are some, and the server is told."""
    clock = VirtualClock(monkeypatch)
    clock.stands = True
    stream = client.prepare(deadline=10.0).multicall({}, "count")
    played.started()
    played.say("items", items=list(range(50)), seq=0)
    clock.seconds += 9.9
    assert next(stream) == 0
    clock.seconds += 0.2
    with pytest.raises(MessagingTimeout, match="after 1 item"):
        next(stream)
    assert played.kinds() == [("cancel", 1)]
    assert list(stream) == []


def test_what_has_come_in_time_is_read_after_the_deadline(
    played: PlayedServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream whose end was there before its deadline is read to the end, however late."""
    clock = VirtualClock(monkeypatch)
    clock.stands = True
    stream = client.prepare(deadline=10.0).multicall({}, "count")
    played.started()
    played.say("reply", items=list(range(50)), seq=0, ending=True)
    clock.seconds += 100
    assert list(stream) == list(range(50))


class Items:
    """An endpoint with a generator that says how far it is.

    Attributes:
        yielded: how many items it has yielded.
        closed: set when it is closed.
    """

    def __init__(self) -> None:
        self.yielded = 0
        self.closed = threading.Event()

    def items(self, ctxt: Any, count: int, size: int) -> Iterator[str]:
        """Yield numbers as strings of `size` characters."""
        try:
            for number in range(count):
                self.yielded += 1
                yield f"{number:0{size}d}"
        finally:
            self.closed.set()


@pytest.fixture
def endpoint() -> Iterator[tuple[Items, RPCClient]]:
    """An endpoint that a server serves, and its client."""
    transport, items = new_transport(), Items()
    server = get_rpc_server(transport, Target(topic="foo", server="h1"), [items])
    server.start()
    yield items, get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


def test_a_reader_that_stops_early_has_the_generator_do_little(endpoint: tuple[Items, RPCClient]) -> None:
    """The generator is no further ahead than the client has read, or 100 items where that is less."""
    items, client = endpoint
    for read, most in ((1, 1 + FIRST_WINDOW), (60, 60 + FIRST_WINDOW), (1000, 2000)):
        items.yielded = 0
        items.closed.clear()
        with client.multicall({}, "items", count=100_000, size=10) as stream:
            for _ in range(read):
                next(stream)
        assert items.closed.wait(EVENT_TIMEOUT)
        assert read <= items.yielded <= most


def test_a_stream_that_is_closed_before_the_server_is_known(played: PlayedServer, client: RPCClient) -> None:
    """Cancel waits until the server has sent its inbox; then it is sent at once."""
    stream = client.multicall({}, "count")
    stream.close()
    assert played.kinds() == []
    assert len(played.transport.router) == 1
    played.started()
    assert played.kinds() == [("cancel", 0)]
    assert len(played.transport.router) == 0


def test_a_signal_that_ends_multicall_leaves_nothing(
    played: PlayedServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, while the request is sent by the thread that drives the loop: the call is not waited for any more."""
    transport = played.transport
    real = transport.driver.send

    def send(*args: Any, **kwargs: Any) -> Any:
        sent = real(*args, **kwargs)
        if transport.loop.is_here:
            signal.raise_signal(signal.SIGINT)  # It is put off until this thread drives no more.
        return sent

    monkeypatch.setattr(transport.driver, "send", send)

    def interrupted() -> bool:
        due: Future[None] = Future()
        transport.loop.call_later(0.01, due.set_result, None)
        transport.loop.wait_for(due, transport.loop.now() + EVENT_TIMEOUT)  # It has driven meanwhile, or soon will.
        try:
            client.multicall({}, "count").close()  # Another thread was driving.
        except KeyboardInterrupt:
            return True
        played.started()
        return False

    until(interrupted, "an interrupted multicall", EVENT_TIMEOUT)
    assert len(transport.router) == 0
    assert transport.window.idle


def test_ctrl_c_while_a_stream_begins_leaves_nothing(
    played: PlayedServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place in the send window is free again, and its server is told: it would run for as long as this process."""
    transport = played.transport
    call_later = transport.loop.call_later

    def interrupted(*args: Any) -> None:
        monkeypatch.undo()
        call_later(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(transport.loop, "call_later", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.multicall({}, "count")
    assert transport.window.idle
    assert len(transport.router) == 0
    played.started()
    assert played.kinds() == [("cancel", 0)]


def test_a_stream_that_has_ended_is_not_cancelled(played: PlayedServer, client: RPCClient) -> None:
    """A stream that came to its end needs no cancel, and nothing of it is left."""
    stream = client.multicall({}, "count")
    played.started()
    played.say("reply", items=[1], seq=0, ending=True)
    assert list(stream) == [1]
    stream.close()
    assert played.kinds() == []
    assert len(played.transport.router) == 0


def test_what_arrives_while_a_stream_is_being_closed_is_not_handed_out(
    played: PlayedServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed stream has ended, also for whoever still iterates over it."""
    stream = client.multicall({}, "count")
    played.started()
    played.say("items", items=[0, 1], seq=0)
    assert next(stream) == 0
    close = streams.StreamEnd.close

    def close_after_another_frame(end: streams.StreamEnd) -> None:
        played.say("items", items=[2], seq=2)
        close(end)

    monkeypatch.setattr(streams.StreamEnd, "close", close_after_another_frame)
    stream.close()
    assert list(stream) == []


def test_the_reader_sends_keepalives(played: PlayedServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a stream is open its server is sent keepalives; after that no more."""
    monkeypatch.setattr(streams, "KEEPALIVE", 0.0)
    due: list[Callable[[], object]] = []
    monkeypatch.setattr(played.transport.loop, "call_later", lambda _delay, func: due.append(func))
    stream = client.multicall({}, "count")
    due.pop()()
    assert played.kinds() == []
    played.started()
    due.pop()()
    due.pop()()
    assert played.kinds() == [("keepalive", 0)] * 2
    stream.close()
    due.pop()()
    assert played.kinds() == [("keepalive", 0)] * 2 + [("cancel", 0)]
    assert not due


def test_a_dropped_stream_is_not_kept_alive_by_what_is_due(
    played: PlayedServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop does not keep a stream that nobody holds any more, and cancels it soon after it was dropped."""
    due: list[Callable[[], object]] = []
    monkeypatch.setattr(played.transport.loop, "call_later", lambda _delay, func: due.append(func))
    stream = client.multicall({}, "count")
    played.started()
    del stream
    assert played.kinds() == []  # What drops it may hold a driver's lock.
    while due:
        due.pop()()
    assert played.kinds() == [("cancel", 0)]


def test_a_stream_is_an_iterator(played: PlayedServer, client: RPCClient) -> None:
    """A stream can be iterated over in parts, and is its own iterator."""
    stream = client.multicall({}, "count")
    assert iter(stream) is stream
    played.started()
    played.say("items", items=[1, 2], seq=0)
    assert next(stream) == 1
    assert [next(stream)] == [2]
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_a_closed_stream_of_nobody_is_forgotten(
    played: PlayedServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed stream whose server was never heard from is forgotten once its `started` frame cannot come any more."""
    monkeypatch.setattr(streams, "LOST_AFTER", 0.01)
    client.prepare(timeout=0.5).multicall({}, "count").close()
    until(lambda: len(played.transport.router) == 0, "it is forgotten", EVENT_TIMEOUT)
