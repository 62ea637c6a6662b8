"""How a connection to RabbitMQ divides the channels that it has."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
from amqp.serialization import dumps

from msgbus import TransportUnavailable
from msgbus.drivers.base import Address, QueueInfo
from msgbus.drivers.kombu import frames, questions
from msgbus.drivers.kombu.feed import CHECK_TIMEOUT
from msgbus.drivers.kombu.questions import Answer, Question
from msgbus.drivers.kombu.topology import DEFAULT_EXCHANGE
from msgbus.drivers.toolkit.loop import Loop
from tests.drivers.kombu.test_session import Peer, Still

Make = Callable[[int], Still]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a session that does nothing by itself, to a RabbitMQ with this channel_max."""
    peer = Peer()
    made: list[Still] = []

    def make_still(channel_max: int) -> Still:
        peer.channel_max = channel_max
        made.append(Still(peer, monkeypatch))
        return made[-1]

    yield make_still
    for still in made:
        still.close()
    peer.close()


def ask(still: Still, count: int, timeout: float | None = None) -> list[Answer]:
    """Begin to ask for queues. Returns the list to which the answers are added."""
    answers: list[Answer] = []
    for number in range(count):
        inspect = partial(questions.inspect_queue, queue=f"q{number}")
        Question(still.session, inspect, frames.QUEUE_DECLARE_OK, answers.append, timeout).start()
    return answers


def asked(still: Still) -> list[tuple[int, str]]:
    """For which queues RabbitMQ was asked since the last time, and on which channels."""
    still.session.send_all()
    data, found = still.received(), []
    while data:
        _, channel, size = struct.unpack_from("!BHI", data)
        if data[7:11] == frames.QUEUE_DECLARE:
            found.append((channel, frames.read_short_string(data, 13)))
        data = data[8 + size :]
    return found


def answer(still: Still, channel: int) -> None:
    """Have RabbitMQ answer a question, and then close its channel as it was asked to."""
    declared = b"\x01q" + struct.pack("!II", 0, 0)
    still.session._reader.feed(frames.method(channel, frames.QUEUE_DECLARE_OK, declared))
    still.session._reader.feed(frames.method(channel, frames.CHANNEL_CLOSE_OK))


@pytest.mark.parametrize(("channel_max", "lasting"), [(3, 2), (4, 3), (8, 6), (2047, 1500), (65535, 1500)])
def test_more_addresses_than_channels(make: Make, channel_max: int, lasting: int) -> None:
    """The error names channel_max, and what was there goes on. A quarter of the channels is kept for questions."""
    still = make(channel_max)
    feeds = [still.feed(10) for _ in range(lasting)]
    with pytest.raises(TransportUnavailable, match=f"A connection has {min(channel_max, 2000)} .* channel_max in"):
        still.feed(10)
    assert {feed.number for feed in feeds} == set(range(1, lasting + 1))
    ask(still, 1)
    assert asked(still) == [(lasting + 1, "q0")]
    still.session.remove_channel(feeds[0])
    assert still.feed(10).number <= channel_max


def test_questions_wait_for_each_other(make: Make) -> None:
    """RabbitMQ would close a connection that opens more channels than it allows."""
    still = make(8)
    for _ in range(6):
        still.feed(10)
    answers = ask(still, 5)
    for expected in ("q0", "q1"), ("q2", "q3"), ("q4",):
        found = asked(still)
        assert tuple(queue for _, queue in found) == expected
        for channel, _ in found:
            assert 6 < channel <= 8
            answer(still, channel)
    assert [each.code for each in answers] == [0] * 5


def test_a_question_that_could_not_be_asked_in_time_is_not_asked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not count as silence of RabbitMQ, for which a connection would leave it."""
    still = make(3)
    now = Loop.now()
    monkeypatch.setattr(Loop, "now", staticmethod(lambda: now))
    answers = ask(still, 2, timeout=1.5)
    ((channel, _),) = asked(still)
    now += 1.6
    still.loop.step()
    assert [each.code for each in answers] == [questions.SILENT, questions.NO_CHANNEL]
    answer(still, channel)
    assert asked(still) == []
    assert ask(still, 1) == []
    assert len(asked(still)) == 1


def test_a_number_is_free_when_rabbitmq_has_answered_the_close(make: Make) -> None:
    """Also where RabbitMQ closes the channel at the same moment: then it sends both, its close and its answer.

    The answer would end the next channel with that number.
    """
    still = make(3)
    still.queue.exchange = DEFAULT_EXCHANGE
    feed, ended = still.feed(10), []
    source: Any = feed.source
    source.refused = lambda _feed, why, permanent: ended.append(why)
    source.closed = ended.append
    feed.close()
    closing = dumps("BsBB", (404, "NOT_FOUND - no queue 'q' in vhost '/'", 0, 0))
    still.session._reader.feed(frames.method(feed.number, frames.CHANNEL_CLOSE, closing))
    assert "no queue 'q'" in ended[0]
    still.feed(10)
    with pytest.raises(TransportUnavailable):
        still.feed(10)
    still.session._reader.feed(frames.method(feed.number, frames.CHANNEL_CLOSE_OK))
    still.feed(10)


def test_a_check_that_is_not_answered_is_not_begun_again(make: Make) -> None:
    """For a day of silence about one queue, all channels of the connection would be used up."""
    still = make(2047)
    still.queue.key = None
    feed = still.feed(10)
    source: Any = feed.source
    source.consuming = True
    for _ in range(3):
        feed.check_queue()
    ((channel, _),) = asked(still)
    answer(still, channel)
    feed.check_queue()
    assert len(asked(still)) == 1


@pytest.mark.parametrize("hindered", [0.0, 3.0])
def test_a_node_that_does_not_answer_checks_is_left(
    make: Make, monkeypatch: pytest.MonkeyPatch, hindered: float
) -> None:
    """Of quorum queues: it may be cut off from its cluster. A slow network or an alarm is no silence of the node."""
    still = make(2047)
    still.queue.key, still.queue.is_quorum = None, True
    source: Any = (feed := still.feed(10)).source
    source.consuming, source.waits_since = True, None
    now = Loop.now()
    moves: list[str] = []
    monkeypatch.setattr(Loop, "now", staticmethod(lambda: now))
    monkeypatch.setattr(still.session, "move", moves.append)
    feed.check_queue()
    still.session.hindered_at = now + hindered
    now += CHECK_TIMEOUT + hindered - 0.1
    still.loop.step()
    feed.check_queue()
    assert not moves
    now += 0.2
    still.loop.step()
    feed.check_queue()
    assert "has not answered for 5 s" in moves[0]


def test_an_alarm_keeps_rabbitmq_from_answering(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not read from a connection that publishes, for as long as that takes."""
    still = make(2047)
    now = Loop.now()
    monkeypatch.setattr(Loop, "now", staticmethod(lambda: now))
    for blocked in ("memory", None):
        now += 20
        still.session.line.block(blocked)
        still.loop.step()
        assert (still.session.hindered_at == now) is (blocked is not None)


def test_a_queue_is_not_inspected_again_while_rabbitmq_has_not_answered(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes at once, and no further channel is taken: who looks each second would take them all."""
    still = make(2047)
    now = Loop.now()
    monkeypatch.setattr(Loop, "now", staticmethod(lambda: now))

    def inspect() -> Future[QueueInfo]:
        found: Future[QueueInfo] = Future()
        still.session.inspect(Address("topic", "msgbus", "t"), found)
        return found

    late, same = inspect(), inspect()
    ((channel, _),) = asked(still)
    now += 2.1
    still.loop.step()
    again = inspect()
    assert asked(still) == []
    for each in (late, same, again):
        with pytest.raises(TransportUnavailable, match="'msgbus/t' cannot be inspected: no answer"):
            each.result(0)
    answer(still, channel)
    found = inspect()
    ((channel, _),) = asked(still)
    answer(still, channel)
    assert found.result(0) == QueueInfo(0, 0)


def test_questions_that_wait_end_with_the_connection(make: Make) -> None:
    """They are answered as those that were asked."""
    still = make(3)
    answers = ask(still, 3)
    session: Any = still.session
    session.lose("the test says so")
    assert [each.code for each in answers] == [questions.DISCONNECTED] * 3
