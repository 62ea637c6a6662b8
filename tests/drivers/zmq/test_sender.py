"""msgbus.drivers.zmq.sender: where messages go to, and when it checks for those that have no receipt."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.matchmakers.base import Directory, Entry, Service
from msgbus.drivers.zmq.queue import Parcel
from msgbus.drivers.zmq.routing import Router
from msgbus.drivers.zmq.sender import ZmqSender
from msgbus.exceptions import MessageUndeliverable, TransportUnavailable

TOPIC = Address("topic", "msgbus", "foo")
FANOUT = Address("fanout", "msgbus", "foo")
INBOX = Address("inbox", name="there.1")
THERE = Entry("there", 1, "here", [], [Service((*TOPIC,), 1, 10)])


class Timers:
    """A loop that has nothing but timers, which the test runs."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def call_later(self, _delay: float, func: Callable[..., None], *args: Any) -> None:
        """Keep a timer."""
        self.waiting.append((func, args))

    def run(self) -> None:
        """Run each of those that are waiting now."""
        waiting, self.waiting = self.waiting, []
        for func, args in waiting:
            func(*args)


class OneLink:
    """Connections to a single node, which answers nothing."""

    def __init__(self) -> None:
        self.on_record: dict[int, Any] = {}
        self.sent: list[tuple[int, bytes]] = []
        self.there: PeerLink | None = PeerLink("there", None, b"", -1, 1000, 0)

    def link(self, node: str) -> PeerLink | None:
        """The connection to a node."""
        return self.there if node == "there" else None

    def dial(self, _node: str, _endpoints: list[str], _key: str) -> None:
        """Connect to a node."""

    def all(self) -> list[PeerLink]:
        """All connections."""
        return [] if self.there is None else [self.there]

    def send(self, link: PeerLink, data: bytes) -> None:
        """Note a record that is sent, and the body or the address in it."""
        ((kind, at, end),) = frames.records(data)
        self.sent.append((kind, frames.read_data(data, at, end).message.body if kind == frames.DATA else data[at:end]))


class Nobody:
    """A matchmaker that knows all nodes."""

    is_opening = False
    rechecked = 0

    @staticmethod
    def is_alive(_node: str) -> bool:
        """Whether a node's process lives."""
        return True

    @staticmethod
    def recheck() -> int:
        """Look for new nodes."""
        return 0

    @staticmethod
    def why_incomplete() -> str:
        """Why nodes may be missing."""
        return ""


class Sender:
    """A sender with one connection, and what it works with."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.links = OneLink()
        self.directory = Directory()
        self.news: dict[str, Entry] = {}
        made: list[Any] = [self.timers, self.links, Nobody()]
        self.router = Router(made[1], self.directory)
        self.tested = ZmqSender(made[0], self.router, self.refresh, made[2], 60.0)

    def refresh(self) -> None:
        """Bring the directory up to date."""
        self.directory.update(self.news)

    def send(self, ttl: float, address: Address = TOPIC, body: bytes = b"") -> Future[Sent]:
        """Send a message with so many seconds."""
        sent: Future[Sent] = Future()
        self.tested.send(Parcel(address, Message(body, "text", "id", ttl), True, sent))
        return sent

    def hear(self, record: bytes) -> None:
        """Read a frame with this record from the node."""
        assert self.links.there is not None
        for kind, at, end in frames.records(record):
            self.links.on_record[kind](self.links.there, record, at, end)
        self.tested.on_frame_end()


@pytest.fixture
def sender() -> Sender:
    """A sender that knows one server of the topic."""
    made = Sender()
    made.news = {"there": THERE}
    made.refresh()
    return made


def test_way_changes_with_the_directory(sender: Sender) -> None:
    """A server that is known no more gets nothing, and one that is known again does."""
    assert not sender.send(60.0).done()
    sender.directory.update({})
    assert isinstance(sender.send(60.0).exception(0), MessageUndeliverable)
    sender.refresh()
    assert not sender.send(60.0).done()


def test_way_to_an_inbox_ends_with_its_connection(sender: Sender) -> None:
    """The inbox of a node that is in no directory is known by its connection alone."""
    sender.news = {}
    sender.refresh()
    sender.send(60.0, INBOX)
    link, sender.links.there = sender.links.there, None
    assert link is not None
    link.up, link.peer_left = False, True
    sender.tested.on_link_down(link, "closed")
    assert isinstance(sender.send(60.0, INBOX).exception(0), MessageUndeliverable)
    link.up = True
    sender.links.there = link
    sender.tested.on_link_up(link)
    assert not sender.send(60.0, INBOX).done()


def test_unknown_inbox_is_looked_for(sender: Sender) -> None:
    """The directory is not brought up to date for each answer, but for one whose inbox is not known."""
    sender.links.there = None
    sender.directory.update({})
    assert not sender.send(60.0, INBOX).done()
    assert "there" in sender.directory.entries


def test_message_to_several_nodes_is_sent_when_all_have_it(sender: Sender) -> None:
    """Its future says how many subscribers have got it."""
    sender.news = {name: Entry(name, 1, "here", [], [Service((*FANOUT,), 1, 10)]) for name in ("there", "here")}
    sender.refresh()
    sent = sender.send(60.0, FANOUT)
    queues = sender.router.route(FANOUT)
    assert len(queues) == 2
    link = sender.links.there
    assert link is not None
    frame = frames.numbers(frames.REACHED, [1, 3])
    sender.links.on_record[frames.REACHED](link, frame, 5, len(frame))
    assert not sent.done()  # One node cannot be reached.
    here = PeerLink("here", None, b"", -1, 1000, 0)
    sender.tested.on_link_up(here)
    frame = frames.numbers(frames.REACHED, [1, 2])
    sender.links.on_record[frames.REACHED](here, frame, 5, len(frame))
    assert sent.result(0).reached == 5


def test_checks_do_not_pile_up(sender: Sender) -> None:
    """A message with less time is checked for sooner; the checks that were to be made later are made no more."""
    for ttl in (1000.0, 500.0, 400.0, 300.0):
        sender.send(ttl)
    assert len(sender.timers.waiting) == 4
    for _ in range(3):
        sender.timers.run()
        assert len(sender.timers.waiting) == 1


def test_one_check_for_many_messages_with_the_same_time(sender: Sender) -> None:
    """A busy sender does not have a timer for each message."""
    for _ in range(100):
        sender.send(60.0)
    assert len(sender.timers.waiting) == 1


def test_message_without_a_receipt_fails_when_its_time_has_ended(sender: Sender) -> None:
    """It may have been delivered. Those that have time left wait on."""
    late, early = sender.send(100.0), sender.send(-1.0)
    sender.timers.run()
    error = early.exception(0)
    assert isinstance(error, TransportUnavailable)
    assert error.maybe_delivered
    assert not late.done()
    assert len(sender.timers.waiting) == 1


@pytest.mark.parametrize("address", [TOPIC, FANOUT])
def test_what_a_full_node_refuses_after_it_has_room_again_goes_first(sender: Sender, address: Address) -> None:
    """Messages were under way when it reported that it has room. It refuses them, and reports nothing more."""
    sender.news = {"there": Entry("there", 1, "here", [], [Service((*address,), 1, 10)])}
    sender.refresh()
    for number in range(1, 5):
        sender.send(60.0, address, b"%d" % number)
    wire = frames.write_address(address)
    del sender.links.sent[:]
    sender.hear(frames.numbers(frames.FULL, [1]))
    sender.hear(frames.numbered(frames.READY, 1, wire))
    sender.send(60.0, address, b"5")
    sender.hear(frames.numbers(frames.FULL, [2, 3]))
    assert sender.links.sent == []
    sender.hear(frames.numbers(frames.FULL, [4]))
    bodies = [b"%d" % number for number in range(1, 6)]
    assert sender.links.sent == [(frames.RESUME, wire), *((frames.DATA, body) for body in bodies)]
    sender.hear(frames.numbers(frames.FULL, [5]))
    sender.send(60.0, address, b"6")
    assert len(sender.links.sent) == 6, "it is full again"


def test_full_node_with_a_new_entry_is_tried_again(sender: Sender) -> None:
    """The subscriber that had no room has left, and with it what would have reported that there is room."""
    for number in range(1, 4):
        sender.send(60.0, TOPIC, b"%d" % number)
    del sender.links.sent[:]
    sender.hear(frames.numbers(frames.FULL, [1]))
    sender.news = {"there": Entry("there", 1, "here", [], [Service((*TOPIC,), 2, 10)])}
    sender.refresh()
    sender.hear(frames.numbers(frames.FULL, [2]))
    assert sender.links.sent == []
    sender.hear(frames.numbers(frames.FULL, [3]))
    bodies = [b"1", b"2", b"3"]
    assert sender.links.sent == [(frames.RESUME, frames.write_address(TOPIC)), *((frames.DATA, b) for b in bodies)]
