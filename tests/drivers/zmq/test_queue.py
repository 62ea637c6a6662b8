"""msgbus.drivers.zmq.queue: who gets the next message, and what is taken back from whom."""

from __future__ import annotations

from concurrent.futures import Future

from msgbus.drivers.base import Address, Message
from msgbus.drivers.zmq.link import Link
from msgbus.drivers.zmq.matchmakers.base import Entry, Service
from msgbus.drivers.zmq.queue import Copy, Parcel, Queue

TOPIC = Address("topic", "msgbus", "foo")


def make_queue(*nodes: str, prefetch: int = 2) -> Queue:
    """A queue that these nodes serve, all of them connected."""
    queue = Queue(TOPIC, "")
    service = Service((*TOPIC,), 1, prefetch)
    queue.update(dict.fromkeys(nodes, service), {node: entry(node) for node in nodes})
    for consumer in queue.consumers:
        consumer.link = Link(consumer.node, None, b"", -1, 1000, 0)
    return queue


def entry(node: str) -> Entry:
    """What a node tells of itself, anew each time."""
    return Entry(node, 1, "here", [], [])


def make_copy(queue: Queue, number: int, ttl: float | None = None) -> Copy:
    """The message of that number."""
    return Copy(Parcel(TOPIC, Message(b"", "", str(number), ttl), False, Future()), queue, number)


def pick(queue: Queue) -> str | None:
    """Pick, and count it as sent."""
    consumer = queue.pick()
    if consumer is None:
        return None
    consumer.outstanding += 1
    return consumer.node


def test_equals_take_turns() -> None:
    """Idle servers get equal shares, also where each message is done before the next comes."""
    queue = make_queue("a", "b", "c")
    picked = []
    for _ in range(30):
        consumer = queue.pick()
        assert consumer is not None
        picked.append(consumer.node)
    assert {node: picked.count(node) for node in "abc"} == {"a": 10, "b": 10, "c": 10}


def test_the_one_with_the_least_to_do_is_next() -> None:
    """What is unsettled counts."""
    queue = make_queue("a", "b", prefetch=10)
    queue.by_node["a"].outstanding = 3
    assert [pick(queue) for _ in range(4)] == ["b", "b", "b", queue.consumers[queue.turn - 1].node]


def test_more_subscribers_get_more() -> None:
    """A node with two of them counts as two."""
    queue = make_queue("a", "b", prefetch=100)
    queue.by_node["a"].weight = 2
    picked = [pick(queue) for _ in range(30)]
    assert picked.count("a") == 20


def test_who_has_room_goes_before_who_has_not() -> None:
    """One that said that all its subscribers are busy is the last choice, however little of ours it has."""
    queue = make_queue("a", "b", prefetch=5)
    queue.by_node["a"].busy = True
    assert [pick(queue) for _ in range(5)] == ["b"] * 5
    assert pick(queue) == "a"


def test_who_takes_nothing_gets_nothing() -> None:
    """One that is full, gone, not connected, or has too much under way."""
    queue = make_queue("a", "b", "c", "d", "e")
    queue.by_node["a"].full = True
    queue.by_node["b"].gone = True
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


def test_a_surplus_is_taken_back_for_an_idle_one() -> None:
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


def test_nothing_is_taken_back_where_nobody_has_room() -> None:
    """Nor where there is only one."""
    queue = make_queue("a", "b", prefetch=1)
    for consumer in queue.consumers:
        consumer.outstanding, consumer.queued = 1, {1: None}
    assert queue.to_recall() == []
    only = make_queue("a")
    only.by_node["a"].queued = {1: None}
    assert only.to_recall() == []


def test_what_comes_back_is_before_what_was_sent_later() -> None:
    """In the order of sending, however it comes back."""
    queue = make_queue()
    copies = [make_copy(queue, number) for number in range(10)]
    queue.waiting.extend(copies[6:])
    queue.put_back([copies[5], copies[2], copies[3]])
    queue.put_back([copies[4], copies[0]])
    assert [copy.number for copy in queue.waiting] == [0, 2, 3, 4, 5, 6, 7, 8, 9]


def test_who_said_that_nobody_is_there_is_asked_again_when_it_tells_anew() -> None:
    """Until then the directory is known to be wrong."""
    queue = make_queue("a", "b")
    queue.by_node["a"].gone = True
    queue.drop_gone()
    assert [consumer.node for consumer in queue.consumers] == ["b"]
    service = Service((*TOPIC,), 1, 1)
    known = queue.by_node["a"].entry
    assert known is not None
    queue.update({"a": service, "b": service}, {"a": known, "b": entry("b")})
    assert [consumer.node for consumer in queue.consumers] == ["b"]
    queue.update({"a": service, "b": service}, {"a": entry("a"), "b": entry("b")})
    assert [consumer.node for consumer in queue.consumers] == ["a", "b"]


def test_who_leaves_and_has_something_is_kept_for_its_word() -> None:
    """It gets nothing more, and is forgotten once it has settled all."""
    queue = make_queue("a", "b")
    queue.by_node["a"].outstanding = 1
    queue.update({}, {})
    assert queue.consumers == []
    assert set(queue.by_node) == {"a"}
    queue.by_node["a"].outstanding = 0
    queue.update({}, {})
    assert queue.by_node == {}


def test_what_waited_for_too_long_is_taken_out() -> None:
    """And what nobody waits for any more is dropped."""
    queue = make_queue()
    late, early, failed = make_copy(queue, 1, 100.0), make_copy(queue, 2, 1.0), make_copy(queue, 3)
    failed.parcel.sent.set_exception(RuntimeError())
    queue.waiting.extend([late, early, failed])
    assert queue.take_expired(early.gives_up + 1) == [early]
    assert list(queue.waiting) == [late]


def test_an_unused_queue_is_forgotten_in_time() -> None:
    """Not while something is in it or under way."""
    queue = make_queue("a")
    start = queue.used
    queue.by_node["a"].outstanding = 1
    assert not queue.is_unused(start + 100, 60)
    queue.by_node["a"].outstanding = 0
    assert not queue.is_unused(start + 130, 60)
    assert queue.is_unused(start + 161, 60)
