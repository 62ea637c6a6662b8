"""What clients have to do, and how servers know that all has come."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading

import pytest

from benchmarks import base
from benchmarks.base import Broker, Work
from benchmarks.child import Sink
from benchmarks.payloads import MOST_BYTES, SIZES, Payload, WrongAnswer, check, items, make_payload, most, window

FOREVER = 3600.0


@pytest.mark.parametrize("size", SIZES)
def test_payloads_have_about_the_size_that_is_asked_for(size: int) -> None:
    """And differ by their number only."""
    text = json.dumps(make_payload(7, size))
    assert size <= len(text) <= size + 50
    assert make_payload(7, size) != make_payload(8, size)


def test_a_wrong_answer_is_seen() -> None:
    """However little is wrong with it."""
    check(make_payload(1, 200), make_payload(1, 200))
    with pytest.raises(WrongAnswer):
        check(make_payload(1, 200) | {"tags": []}, make_payload(1, 200))


def test_nobodys_memory_is_filled() -> None:
    """What is sent without an answer is bounded, and so is a stream."""
    assert all(most(size) * size <= MOST_BYTES for size in SIZES)
    assert most(10 * MOST_BYTES) == 1
    assert [window(size) for size in (*SIZES, MOST_BYTES)] == [1000, 1000, 64, 2]
    assert [items(size) for size in SIZES] == [1000, 1000, 10]


def test_work_ends_with_its_time_or_its_number() -> None:
    """Whichever comes first."""
    assert [payload["number"] for payload in Work(100, itertools.count(5), FOREVER, most=3).payloads()] == [5, 6, 7]
    assert len(list(Work(100, itertools.count(), 0.0).payloads())) == 1, "there is something to measure"
    assert not list(Work(100, itertools.count(), FOREVER, most=0).payloads())
    assert Work(100, itertools.count(), 0.0).is_over


def test_threads_share_work() -> None:
    """Each payload is given to one of them, and none is left out."""
    seen: list[int] = []
    assert (
        base.in_threads(lambda payload: seen.append(payload["number"]), Work(100, itertools.count(), FOREVER, 5000))
        == 5000
    )
    assert sorted(seen) == list(range(5000))


def test_an_error_in_a_thread_is_the_works() -> None:
    """It is not counted as done."""

    def once(payload: Payload) -> None:
        raise WrongAnswer("no")

    with pytest.raises(WrongAnswer):
        base.in_threads(once, Work(100, itertools.count(), FOREVER, 100))


def test_tasks_share_work() -> None:
    """As many run at the same time as were asked for."""
    running = peak = 0

    async def once(_payload: Payload) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1

    assert asyncio.run(base.in_tasks(once, Work(100, itertools.count(), FOREVER, 500), 32)) == 500
    assert peak == 32


def test_a_window_is_kept() -> None:
    """What was begun first is finished first, and all is finished."""
    open_now: list[int] = []
    peak = 0

    def begin(payload: Payload) -> int:
        nonlocal peak
        open_now.append(payload["number"])
        peak = max(peak, len(open_now))
        return int(payload["number"])

    def finish(call: int, payload: Payload) -> None:
        assert open_now.pop(0) == call == payload["number"]

    assert base.windowed(begin, finish, Work(100, itertools.count(), FOREVER, 100), 10) == 100
    assert (peak, open_now) == (10, [])


def fill(sink: Sink, *numbers: int) -> None:
    """Let casts of these numbers come."""
    for number in numbers:
        sink.echo(make_payload(number, 100))


def test_a_sink_knows_that_all_has_come() -> None:
    """In any order, and waits for the last."""
    sink = Sink(100)
    fill(sink, 2, 0)
    threading.Timer(0.05, fill, (sink, 1)).start()
    sink.wait(3)
    fill(sink, 5000, *range(3, 5000))
    sink.wait(5001)


@pytest.mark.parametrize(
    ("numbers", "text"), [((0, 1), "2 messages"), ((0, 1, 3), "not the same"), ((0, 1, 1), "1 came twice")]
)
def test_a_sink_knows_what_is_lost_or_doubled(numbers: tuple[int, ...], text: str) -> None:
    """Even if their number is right."""
    sink = Sink(100)
    fill(sink, *numbers)
    with pytest.raises(WrongAnswer, match=text):
        sink.wait(3, timeout=0.05)


def test_a_sink_knows_what_was_changed() -> None:
    """On its way."""
    sink = Sink(100)
    sink.echo(make_payload(0, 100) | {"host": "elsewhere"})
    with pytest.raises(WrongAnswer, match="elsewhere"):
        sink.wait(1)


class Streaming(base.Client):
    """Streams numbers, perhaps the wrong ones."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__("", "")
        self._numbers = numbers

    def stream(self, count: int, size: int) -> list[Payload]:
        return [make_payload(number, size) for number in self._numbers]


def test_streams_are_read_whole_and_in_order() -> None:
    """Each has all of its items."""
    size = 1024 * 1024
    assert Streaming(list(range(10))).multicall(Work(size, itertools.count(), 0.0)) == 10
    for wrong in ([], [0, 1], [0, 2, 1, *range(3, 10)]):
        with pytest.raises(WrongAnswer):
            Streaming(wrong).multicall(Work(size, itertools.count(), 0.0))


def test_a_url_is_taken_apart() -> None:
    """For libraries that do not read those of msgbus."""
    assert Broker.parse("rabbit://ann:s%40cret@there:1234/") == Broker("there", 1234, "ann", "s@cret", "/")
    assert Broker.parse("rabbit:///").amqp == "amqp://guest:guest@localhost:5672/"
