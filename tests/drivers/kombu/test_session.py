"""The connections of the kombu driver: how they come back, and what they read and write."""

from __future__ import annotations

import random
import socket
import struct
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from amqp.serialization import dumps

from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, QueueInfo
from msgbus.drivers.kombu import frames
from msgbus.drivers.kombu.feed import KombuFeed
from msgbus.drivers.kombu.questions import Answer
from msgbus.drivers.kombu.session import KombuSession
from msgbus.drivers.kombu.topology import Exchange, Queue
from msgbus.drivers.toolkit.consuming import Outcome
from msgbus.drivers.toolkit.loop import FOREVER, LINGER, Loop
from tests.support import EVENT_TIMEOUT, new_transport


class Peer:
    """Accepts connections, and can break one before its client uses it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.accepted: list[socket.socket] = []
        self.break_next = False
        self.channel_max = 2047

    def connect(self, _host: object, _purpose: str) -> Any:
        """What py-amqp would return."""
        client = socket.create_connection(self._listener.getsockname())
        self.accepted.append(self._listener.accept()[0])
        if self.break_next:
            self.break_next = False
            self.reset()
            until(lambda: self._is_broken(client), "the client's end is broken, too")
        transport = SimpleNamespace(sock=client, close=client.close)
        return SimpleNamespace(transport=transport, channel_max=self.channel_max, frame_max=131072, heartbeat=0)

    @staticmethod
    def _is_broken(client: socket.socket) -> bool:
        try:
            client.getpeername()
        except OSError:
            return True
        return False

    def reset(self) -> None:
        """Break the last connection."""
        self.accepted[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.accepted[-1].close()

    def close(self) -> None:
        for sock in (self._listener, *self.accepted):
            sock.close()


def test_connection_that_breaks_while_it_comes_back_comes_back(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks again before it was used is also opened again."""
    transport = new_transport("rabbit://h")
    driver: Any = transport.driver
    monkeypatch.setattr(driver, "dial", peer.connect)
    line = driver.consuming
    try:
        line.connector.open()
        until(lambda: line.up, "the first connection")
        peer.break_next = True
        peer.reset()
        until(lambda: len(peer.accepted) >= 3 and line.up, "a connection after the broken one")
    finally:
        transport.cleanup()
    assert not line.up


def test_what_the_network_does_not_take_at_once_is_not_copied_for_each_write(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a thousand large requests is on its way at once. With a copy for each write this would take an hour."""
    transport = new_transport("rabbit://h")
    driver: Any = transport.driver
    monkeypatch.setattr(driver, "dial", peer.connect)
    line = driver.consuming
    waiting = 256 << 20
    try:
        line.connector.open()
        until(lambda: line.up, "a connection")
        line.session._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        driver.loop.call(line.session.write, bytes(waiting))
        peer.accepted[0].settimeout(EVENT_TIMEOUT)
        end = time.monotonic() + 2 * EVENT_TIMEOUT
        while waiting and time.monotonic() < end:
            waiting -= len(peer.accepted[0].recv(1 << 20))
    finally:
        transport.cleanup()
    assert not waiting


class Still:
    """A session to a peer, which goes on only when the test lets it: the test has the loop's turn."""

    def __init__(self, peer: Peer, monkeypatch: pytest.MonkeyPatch, url: str = "rabbit://h") -> None:
        self.transport = new_transport(url)
        driver: Any = self.transport.driver
        monkeypatch.setattr(driver, "dial", peer.connect)
        driver.consuming.connector.open()
        until(lambda: driver.consuming.up, "a connection")
        self.loop = driver.loop
        self.session: KombuSession = driver.consuming.session
        self._socket = peer.accepted[0]
        self._socket.setblocking(False)
        self.delivered: list[tuple[int, Any]] = []
        self.queue = SimpleNamespace(is_quorum=False, is_stream=False, own=False, name="q")
        until(self.take_turn, "the turn")

    def take_turn(self) -> bool:
        """Take the loop's turn; its own thread gives it to a thread that waits."""
        soon: Future[None] = Future()
        self.loop.call_later(0.01, soon.set_result, None)
        assert self.loop.wait_for(soon, self.loop.now() + EVENT_TIMEOUT)
        return bool(self.loop.take_turn())

    def before_sleep(self) -> float:
        """What the loop does before its thread sleeps: how long it may sleep."""
        return float(self.loop._write_gathered(False))

    def close(self) -> None:
        self.loop.give_turn()
        self.transport.cleanup()

    def feed(self, prefetch: int) -> KombuFeed:
        """A feed on a channel of its own, which counts as open."""
        source = SimpleNamespace(prefetch=prefetch, address=Address("topic", "t", "t"), deliver=self._deliver)
        feed = KombuFeed(self.session, cast("Any", source), cast("Any", self.queue))
        self.session.add(feed)
        return feed

    def _deliver(self, feed: KombuFeed, tag: int, message: Any, *_: object) -> None:
        self.delivered.append((tag, message))

    def read(self, feed: KombuFeed, *tags: int) -> None:
        """Have the session read deliveries."""
        self.session._reader.feed(b"".join(delivery(feed.number, tag) for tag in tags))

    def received(self) -> bytes:
        """What has reached the peer since the last time."""
        try:
            return self._socket.recv(1 << 16)
        except BlockingIOError:
            return b""

    def payloads(self) -> list[bytes]:
        """The payloads of the frames that have reached the peer since the last time."""
        found, data = [], self.received()
        while data:
            _, _, size = struct.unpack_from("!BHI", data)
            found.append(data[7 : 7 + size])
            data = data[8 + size :]
        return found

    def written(self) -> list[tuple[bytes, int]]:
        """Ids and delivery tag of what has reached the peer since the last time."""
        return [(payload[:4], int.from_bytes(payload[4:12], "big")) for payload in self.payloads()]


def delivery(channel: int, tag: int, body: bytes = b"body", frame_max: int = 131072) -> bytes:
    """The frames of a delivery."""
    arguments = b"\x010" + tag.to_bytes(8, "big") + b"\0\0\0"
    method = frames.method(channel, frames.BASIC_DELIVER, arguments)
    return frames.publish(method, channel, body, "application/json", f"id{tag}", 1000, True, frame_max)


def test_deliveries_are_read_however_they_are_cut(still: Still) -> None:
    """In one read or many, with one body frame or several, or none: each message comes once, whole and in order."""
    feed = still.feed(100)
    bodies = [b"a", b"", b"b" * 5000, b"\xce" * 50, b"c"]
    data = b"".join(delivery(feed.number, n, body, 1000) for n, body in enumerate(bodies))
    for step in (1, 7, 22, 1000, len(data)):
        for at in range(0, len(data), step):
            still.session._reader.feed(data[at : at + step])
        found = [(tag, message.body, message.id, message.content_type) for tag, message in still.delivered]
        assert found == [(n, body, f"id{n}", "application/json") for n, body in enumerate(bodies)]
        still.delivered.clear()


def test_deliveries_of_a_closed_channel_are_skipped(still: Still) -> None:
    """They were under way when it was closed, and the next frames are read."""
    closed, open_ = still.feed(100), still.feed(100)
    still.session.remove_channel(closed)
    still.session._reader.feed(delivery(closed.number, 1) + delivery(closed.number, 2, b"") + delivery(open_.number, 3))
    assert [tag for tag, _ in still.delivered] == [3]


@pytest.mark.parametrize("stopped", [True, False])
def test_a_queue_without_consumers_is_consumed_from_again_unless_it_was_stopped(still: Still, stopped: bool) -> None:
    """A fanout's quorum queue without a leader has no consumers; nor has that of a server that finishes its work."""
    lost: list[str] = []
    still.queue.is_quorum = still.queue.own = True
    feed = still.feed(100)
    source: Any = feed.source
    source.lost = lambda _feed, why: lost.append(why)
    still.read(feed, 1)
    if stopped:
        feed.cancel()
    none = Answer(0, info=QueueInfo(0, 0))
    for answer in (none, none, Answer(0, info=QueueInfo(1, 0)), none, none):
        feed._on_checked(answer)
    assert not lost
    feed._on_checked(none)
    assert bool(lost) is not stopped
    assert feed.settle(1, Outcome.ACCEPT) is stopped


def test_messages_of_an_inbox_are_acknowledged_in_order(still: Still) -> None:
    """Also while the socket takes nothing: RabbitMQ closes the channel over a tag that was acknowledged before."""
    feed = still.feed(0)
    still.session._unsent = memoryview(b"something")  # as when the socket is full
    still.read(feed, *range(1, 65))
    still.session.send_all()
    still.read(feed, 65, 66)
    still.session._unsent = memoryview(b"")
    still.session.send_all()
    tags = [tag for ids, tag in still.written() if ids == frames.BASIC_ACK]
    assert tags[-1] >= 64
    assert tags == sorted(set(tags))


def test_acknowledgements_of_an_inbox_wait_for_other_data(still: Still) -> None:
    """64 at the most; then they are written by themselves."""
    feed = still.feed(0)
    still.read(feed, *range(1, 64))
    still.loop.step()
    assert still.written() == []
    still.read(feed, 64)
    still.loop.step()
    assert still.written() == [(frames.BASIC_ACK, 64)]
    still.read(feed, 65)
    still.session.write(frames.method(9, frames.CHANNEL_OPEN, bytes(8)))
    still.loop.step()
    assert still.written() == [(frames.BASIC_ACK, 65), (frames.CHANNEL_OPEN, 0)]


ACK = frames.BASIC_ACK


@pytest.mark.parametrize(
    ("prefetch", "delivered", "accepted", "waits"),
    [(1, 1, 1, False), (2, 1, 1, False), (3, 1, 1, True), (10, 4, 4, True), (10, 5, 1, False), (10, 5, 5, False)],
)
def test_acknowledgements_that_are_not_urgent_wait_a_moment(
    still: Still, monkeypatch: pytest.MonkeyPatch, prefetch: int, delivered: int, accepted: int, waits: bool
) -> None:
    """While RabbitMQ knows of fewer than half the prefetch as unsettled; and then for LINGER, not longer."""
    monkeypatch.setattr(Loop, "now", staticmethod(lambda: 1000.0))
    feed = still.feed(prefetch)
    tags = range(1, delivered + 1)
    still.read(feed, *tags)
    for tag in tags[:accepted]:
        assert feed.settle(tag, Outcome.ACCEPT)
    acknowledgements = [(ACK, accepted)]  # for all of them
    assert still.before_sleep() == (LINGER if waits else FOREVER)
    still.loop.write_rest()
    assert still.written() == ([] if waits else acknowledgements)
    monkeypatch.setattr(Loop, "now", staticmethod(lambda: 1000.0 + LINGER))
    assert still.before_sleep() == FOREVER
    still.loop.write_rest()
    assert still.written() == (acknowledgements if waits else [])


def test_acknowledgements_do_not_wait_where_the_thread_gives_the_turn_back(still: Still) -> None:
    """Nor where it has lingered: nobody would write them soon."""
    feed = still.feed(10)
    still.read(feed, 1)
    assert feed.settle(1, Outcome.ACCEPT)
    assert still.written() == []
    still.loop.give_turn()
    assert still.written() == [(ACK, 1)]
    until(still.take_turn, "the turn")


def test_acknowledgements_do_not_wait_while_the_loop_sleeps(still: Still) -> None:
    """The thread that accepts writes them itself."""
    feed = still.feed(10)
    still.read(feed, 1)
    still.loop.awake = False
    assert feed.settle(1, Outcome.ACCEPT)
    still.loop.awake = True
    assert still.written() == [(ACK, 1)]


class Unsettled:
    """The deliveries of a channel that a broker knows as unsettled, and what it is told of them."""

    def __init__(self) -> None:
        self.tags: list[int] = []
        self.told: dict[int, Outcome] = {}

    def read(self, payloads: list[bytes]) -> int:
        """Do what a broker does with these frames. Returns how many there were."""
        for payload in payloads:
            tag, flag = int.from_bytes(payload[4:12], "big"), payload[12]
            if payload[:4] == ACK:
                found = [each for each in self.tags if each <= tag] if flag else [tag]
                outcome = Outcome.ACCEPT
            else:
                assert payload[:4] == frames.BASIC_REJECT
                found, outcome = [tag], Outcome.REQUEUE if flag else Outcome.DROP
            assert tag in self.tags, "RabbitMQ closes the channel over a tag that it does not know"
            for each in found:
                self.tags.remove(each)
                self.told[each] = outcome
        return len(payloads)


@pytest.mark.parametrize("seed", range(30))
def test_each_delivery_is_settled_as_it_was_asked_for(still: Still, seed: int) -> None:
    """In whatever order they are accepted and rejected, and whenever that is written, while more are delivered."""
    chance = random.Random(seed)
    feed, broker = still.feed(1000), Unsettled()
    held: list[int] = []
    asked: dict[int, Outcome] = {}
    for step in range(1, 300):
        if chance.random() < 0.5:
            still.read(feed, step)
            broker.tags.append(step)
            held.append(step)
        elif held:
            # Mostly the oldest, as servers do.
            tag = held.pop(0 if chance.random() < 0.8 else chance.randrange(len(held)))
            asked[tag] = chance.choice([*[Outcome.ACCEPT] * 5, Outcome.REQUEUE, Outcome.DROP])
            assert feed.settle(tag, asked[tag])
        if chance.random() < 0.2:
            still.session.send_all()
            broker.read(still.payloads())
            assert broker.told == asked
            assert broker.tags == held


def test_one_acknowledgement_stands_for_many(still: Still) -> None:
    """For all up to the first that is still to be settled; later ones have their own."""
    feed, broker = still.feed(1000), Unsettled()
    still.read(feed, *range(1, 101))
    broker.tags += range(1, 101)
    for tag in range(1, 101):
        if tag != 97:
            feed.settle(tag, Outcome.ACCEPT)
    still.session.send_all()
    assert broker.read(still.payloads()) == 4
    assert broker.tags == [97]
    feed.settle(97, Outcome.ACCEPT)
    still.session.send_all()
    assert broker.read(still.payloads()) == 1
    assert broker.tags == []


def test_what_is_settled_while_settlements_are_gathered_is_written_after_them(
    still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one acknowledgement may stand for several before the one of them that comes after it.

    RabbitMQ would close the channel over that, and requests under at_most_once that it has delivered would be lost.
    """
    feed = still.feed(10)
    still.read(feed, 1, 2, 3)
    take = feed.take_settlements

    def take_while_others_settle() -> bytes:
        taken = take()
        for tag in sorted(feed._unsettled):
            feed.settle(tag, Outcome.ACCEPT)
        return taken

    monkeypatch.setattr(feed, "take_settlements", take_while_others_settle)
    feed.settle(1, Outcome.ACCEPT)
    still.session.send_all()
    assert still.written() == [(frames.BASIC_ACK, 1), (frames.BASIC_ACK, 3)]


def test_what_was_settled_before_a_channel_closes_is_written_before(still: Still) -> None:
    """And nothing for it afterwards, over which RabbitMQ would close the connection."""
    feed, broker = still.feed(1000), Unsettled()
    still.read(feed, 1, 2, 3)
    broker.tags += [1, 2, 3]
    feed.settle(1, Outcome.ACCEPT)
    feed.settle(2, Outcome.REQUEUE)
    feed.close()
    assert not feed.settle(3, Outcome.ACCEPT)
    still.session.send_all()
    *settled, last = still.payloads()
    assert last[:4] == frames.CHANNEL_CLOSE
    broker.read(settled)
    assert broker.told == {1: Outcome.ACCEPT, 2: Outcome.REQUEUE}
    still.session.send_all()
    assert still.payloads() == []


def test_what_was_settled_before_the_connection_closes_is_written_before(still: Still) -> None:
    """RabbitMQ reads nothing after the close."""
    feed = still.feed(1000)
    still.read(feed, 1, 2)
    feed.settle(1, Outcome.ACCEPT)
    feed.settle(2, Outcome.ACCEPT)
    still.session.close()
    assert [payload[:4] for payload in still.payloads()] == [ACK, frames.CONNECTION_CLOSE]


def test_a_subscription_that_is_closed_while_rabbitmq_refuses_its_exchange(still: Still) -> None:
    """It ends. It would be declared again if it went on, as not durable."""
    queue: Any = Queue("t", Exchange("openstack", "topic", True, False), "t", True, {}, False)
    still.queue = queue
    feed, ended = still.feed(10), []
    source: Any = feed.source
    source.refused = lambda _feed, why, permanent: ended.append(why)
    feed.close()
    text = "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'openstack' in vhost '/'"
    closing = dumps("BsBB", (406, text, 0, 0))
    still.session._reader.feed(frames.method(feed.number, frames.CHANNEL_CLOSE, closing))
    assert text in ended[0]


@pytest.mark.parametrize("end", ["reject", "cancel", "close"])
def test_acknowledgements_go_with_other_data(still: Still, end: str) -> None:
    """What gives messages back to other servers is written at once, and acknowledgements before it."""
    feed = still.feed(10)
    still.read(feed, 1, 2)
    assert feed.settle(1, Outcome.ACCEPT)
    if end == "reject":
        feed.settle(2, Outcome.REQUEUE)
    elif end == "cancel":
        feed.cancel()
    else:
        feed.close()
    assert still.before_sleep() == FOREVER
    still.loop.write_rest()
    last = {"reject": frames.BASIC_REJECT, "cancel": frames.BASIC_CANCEL, "close": frames.CHANNEL_CLOSE}[end]
    assert [ids for ids, _ in still.written()] == [ACK, last]
    assert feed.settle(2, Outcome.ACCEPT) is (end != "close")


def test_the_loop_does_not_wait_for_room_when_everything_is_written(
    still: Still, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event may come first, by which the rest is written. The socket always has room then: nothing would sleep."""
    watched: list[bool] = []
    monkeypatch.setattr(still.loop, "watch", lambda _fd, _func, write=False: watched.append(write))
    still.session._watch()
    assert not watched


@pytest.mark.parametrize("outcome", Outcome)
def test_what_a_stream_delivers_is_only_acknowledged(still: Still, outcome: Outcome) -> None:
    """RabbitMQ closes the channel over any other answer."""
    still.queue.is_stream = True
    feed = still.feed(10)
    still.read(feed, 1)
    assert feed.settle(1, outcome)
    still.session.send_all()
    assert still.written() == [(ACK, 1)]


def test_what_another_thread_leaves_while_the_loop_lingers_is_written(still: Still) -> None:
    """It is not an acknowledgement, and comes when the loop has decided to wait for more."""
    feed = still.feed(10)
    still.read(feed, 1)
    feed.settle(1, Outcome.ACCEPT)
    assert still.before_sleep() == LINGER
    still.session.write(frames.method(9, frames.CHANNEL_OPEN, bytes(8)))
    still.loop.write_rest()
    assert still.written() == [(ACK, 1), (frames.CHANNEL_OPEN, 0)]
    still.read(feed, 2)
    assert still.before_sleep() == FOREVER
    feed.settle(2, Outcome.ACCEPT)  # as on another thread: nobody would look at it for long
    still.loop.write_rest()
    assert still.written() == [(ACK, 2)]
