"""msgbus.drivers.zmq.queue: which server gets the next message, and what is recalled from which."""

from __future__ import annotations

from concurrent.futures import Future

from msgbus.drivers.base import Address, Message
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.matchmakers.base import Entry, Service
from msgbus.drivers.zmq.queue import Parcel, Queue

TOPIC = Address("topic", "msgbus", "foo")


def make_queue(*nodes: str, prefetch: int = 2) -> Queue:
    """A queue that these nodes serve, all of them connected."""
    queue = Queue(TOPIC, "")
    service = Service((*TOPIC,), 1, prefetch)
    queue.update(dict.fromkeys(nodes, service), {node: entry(node) for node in nodes})
    for consumer in queue.consumers:
        consumer.link = PeerLink(consumer.node, None, b"", -1, 1000, 0)
    return queue


def entry(node: str) -> Entry:
    """The entry of a node, a new object each time."""
    return Entry(node, 1, "here", [], [])


def make_parcel(queue: Queue, number: int, ttl: float | None = None) -> Parcel:
    """The message of that number, in the queue."""
    parcel = Parcel(TOPIC, Message(b"", "", str(number), ttl), False, Future())
    parcel.queue, parcel.number = queue, number
    return parcel


def pick(queue: Queue) -> str | None:
    """Pick, and count it as sent."""
    consumer = queue.pick()
    if consumer is None:
        return None
    consumer.outstanding += 1
    return consumer.node


def test_idle_servers_take_turns() -> None:
    """Idle servers get equal shares, also where each message is done before the next comes."""
    queue = make_queue("a", "b", "c")
    picked = []
    for _ in range(30):
        consumer = queue.pick()
        assert consumer is not None
        picked.append(consumer.node)
    assert {node: picked.count(node) for node in "abc"} == {"a": 10, "b": 10, "c": 10}


def test_server_with_the_fewest_messages_is_next() -> None:
    """What is unsettled counts."""
    queue = make_queue("a", "b", prefetch=10)
    queue.by_node["a"].outstanding = 3
    assert [pick(queue) for _ in range(4)] == ["b", "b", "b", queue.consumers[queue.turn - 1].node]


def test_node_with_more_subscribers_gets_more() -> None:
    """A node with two of them counts as two."""
    queue = make_queue("a", "b", prefetch=100)
    queue.by_node["a"].weight = 2
    picked = [pick(queue) for _ in range(30)]
    assert picked.count("a") == 20


def test_busy_server_is_picked_last() -> None:
    """One that said that all its subscribers are busy is the last choice, however little of ours it has."""
    queue = make_queue("a", "b", prefetch=5)
    queue.by_node["a"].busy = True
    assert [pick(queue) for _ in range(5)] == ["b"] * 5
    assert pick(queue) == "a"


def test_full_unsubscribed_disconnected_and_congested_servers_are_not_picked() -> None:
    """Nor is the only one, if it is full."""
    queue = make_queue("a", "b", "c", "d", "e")
    queue.by_node["a"].full = True
    queue.by_node["b"].unsubscribed = True
    queue.by_node["c"].link = None
    link = queue.by_node["d"].link
    assert link is not None
    link.congested = True
    assert pick(queue) == "e"
    queue.by_node["e"].full = True
    assert queue.pick() is None
    only = make_queue("a")
    only.by_node["a"].full = True
    assert only.pick() is None


def test_queued_messages_are_recalled_for_an_idle_server() -> None:
    """As much as the idle one has room for, from the one with the most that waits, once at a time."""
    queue = make_queue("busy", "busier", "idle", prefetch=3)
    for node, count in (("busy", 2), ("busier", 4)):
        consumer = queue.by_node[node]
        consumer.busy, consumer.outstanding = True, 10
        consumer.queued = dict.fromkeys(range(count))
    assert [(consumer.node, count) for consumer, count in queue.to_recall()] == [("busier", 3)]
    queue.by_node["busier"].recalling = True
    assert [(consumer.node, count) for consumer, count in queue.to_recall()] == [("busy", 2)]
    queue.by_node["idle"].busy = True
    assert queue.to_recall() == []


def test_nothing_is_recalled_if_no_server_has_room() -> None:
    """Nor where there is only one."""
    queue = make_queue("a", "b", prefetch=1)
    for consumer in queue.consumers:
        consumer.outstanding, consumer.queued = 1, {1: None}
    assert queue.to_recall() == []
    only = make_queue("a")
    only.by_node["a"].queued = {1: None}
    assert only.to_recall() == []


def test_returned_messages_go_before_later_ones() -> None:
    """In the order of sending, however it comes back."""
    queue = make_queue()
    copies = [make_parcel(queue, number) for number in range(10)]
    queue.waiting.extend(copies[6:])
    queue.put_back([copies[5], copies[2], copies[3]])
    queue.put_back([copies[4], copies[0]])
    assert [copy.number for copy in queue.waiting] == [0, 2, 3, 4, 5, 6, 7, 8, 9]


def test_unsubscribed_server_is_used_again_when_its_entry_changes() -> None:
    """Its entry is known to be wrong until it changes."""
    queue = make_queue("a", "b")
    queue.by_node["a"].unsubscribed = True
    queue.drop_unsubscribed()
    assert [consumer.node for consumer in queue.consumers] == ["b"]
    service = Service((*TOPIC,), 1, 1)
    known = queue.by_node["a"].entry
    assert known is not None
    queue.update({"a": service, "b": service}, {"a": known, "b": entry("b")})
    assert [consumer.node for consumer in queue.consumers] == ["b"]
    queue.update({"a": service, "b": service}, {"a": entry("a"), "b": entry("b")})
    assert [consumer.node for consumer in queue.consumers] == ["a", "b"]


def test_server_that_leaves_is_kept_until_it_has_settled_its_messages() -> None:
    """It gets nothing more, and is removed once it has settled all."""
    queue = make_queue("a", "b")
    queue.by_node["a"].outstanding = 1
    queue.update({}, {})
    assert queue.consumers == []
    assert set(queue.by_node) == {"a"}
    queue.by_node["a"].outstanding = 0
    queue.update({}, {})
    assert queue.by_node == {}


def test_expired_and_failed_messages_are_removed() -> None:
    """The expired ones are returned."""
    queue = make_queue()
    late, early, failed = make_parcel(queue, 1, 100.0), make_parcel(queue, 2, 1.0), make_parcel(queue, 3)
    failed.sent.set_exception(RuntimeError())
    queue.waiting.extend([late, early, failed])
    assert queue.take_expired(early.send_until + 1) == [early]
    assert list(queue.waiting) == [late]


def test_queue_is_unused_only_after_it_was_empty_for_long_enough() -> None:
    """Not while something is in it or under way."""
    queue = make_queue("a")
    start = queue.used
    queue.by_node["a"].outstanding = 1
    assert not queue.is_unused(start + 100, 60)
    queue.by_node["a"].outstanding = 0
    assert not queue.is_unused(start + 130, 60)
    assert queue.is_unused(start + 161, 60)
