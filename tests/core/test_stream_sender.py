from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from msgbus import CallCancelled, MessageTooLarge, MessageUndeliverable, SerializationError, stream_sender
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Message
from msgbus.failures import rebuild_failure, serialize_failure
from msgbus.message import JSON, LOST_AFTER, Control, Hints, Reply, Request
from msgbus.sending import OnOutcome
from msgbus.stream_sender import StreamSender
from tests.support import EVENT_TIMEOUT, exit_code_of, holding


class Client:
    """Takes the place of a `ServerCall`: keeps the frames of a sender, and says when and how each has been sent."""

    address = Address("inbox", name="x")

    def __init__(self, *, at_once: bool = True) -> None:
        self.delivery = SimpleNamespace(message=Message(b"", JSON, "c"))
        self.driver = SimpleNamespace(up_since=0.0)
        self.transport = SimpleNamespace(driver=self.driver, lossy=False)
        self.frames: list[Reply] = []
        self.ends: list[BaseException | None] = []
        self.abandoned = 0
        self._at_once = at_once
        self._waiting: list[OnOutcome] = []
        self.come = threading.Semaphore(0)

    def send(self, reply: Reply, on_outcome: OnOutcome) -> None:
        self.frames.append(reply)
        self.come.release()
        if self._at_once:
            on_outcome(None)
        else:
            self._waiting.append(on_outcome)

    def confirm(self, error: BaseException | None = None) -> None:
        self._waiting.pop(0)(error)

    @property
    def items(self) -> list[Any]:
        decode = msgspec.json.decode
        return [decode(item) for frame in self.frames for item in frame.items or ()]

    def sender(self, window: int = 100, window_bytes: int | None = None) -> StreamSender:
        self.request = Request("m", call_id="c", hints=Hints(window=window, window_bytes=window_bytes))
        call: Any = self
        return StreamSender(call)

    def on_answer_sent(self, error: BaseException | None) -> None:
        self.ends.append(error)

    def abandon(self) -> None:
        self.abandoned += 1


class Items:
    """A generator that notes what becomes of it."""

    def __init__(self, values: Any, error: Exception | None = None) -> None:
        self.values = values
        self.error = error
        self.yielded = 0
        self.closed = False

    def __call__(self) -> Generator[Any, None, None]:
        try:
            for value in self.values:
                self.yielded += 1
                yield value
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def in_thread(func: Callable[[], object]) -> threading.Thread:
    """Run something on another thread."""
    thread = threading.Thread(target=func, daemon=True)
    thread.start()
    return thread


def stops_at(yielded: int, items: Items, thread: threading.Thread | None = None) -> None:
    """Wait until that many items were yielded, and `thread`, which runs the stream, goes on waiting for its client."""
    waited = 0

    def is_so() -> bool:
        nonlocal waited
        frame = None if thread is None else sys._current_frames().get(thread.ident or 0)
        waited = waited + 1 if thread is None or (frame is not None and frame.f_code.co_name == "wait") else 0
        return items.yielded >= yielded and waited >= 5

    until(is_so, f"item {yielded}", EVENT_TIMEOUT)
    assert items.yielded == yielded


def test_items_and_the_end() -> None:
    """Items go out in frames with their numbers, and the last frame says that the stream has ended."""
    client, items = Client(), Items("abc")
    client.sender().run(items())
    assert client.items == ["a", "b", "c"]
    assert [frame.seq for frame in client.frames] == [0, 1, 2, 3]
    assert [(frame.kind, frame.ending) for frame in client.frames] == [("items", False)] * 3 + [("reply", True)]
    assert client.frames[-1].failure is None
    assert client.ends == [None]
    assert items.closed


def test_an_empty_generator() -> None:
    """A generator without items is one frame: the end."""
    client = Client()
    client.sender().run(Items("")())
    assert [(frame.ending, frame.items, frame.seq) for frame in client.frames] == [(True, [], 0)]
    assert client.ends == [None]


def test_one_frame_is_under_way_at_a_time() -> None:
    """What is yielded while a frame is under way goes together in the next, with the end if that has come."""
    client = Client(at_once=False)
    client.sender().run(Items(range(5))())
    assert client.items == [0]
    assert not client.ends
    client.confirm()
    assert client.items == [0, 1, 2, 3, 4]
    assert (client.frames[1].seq, client.frames[1].ending) == (1, True)
    assert not client.ends
    client.confirm()
    assert client.ends == [None]
    assert len(client.frames) == 2


def test_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame takes no more bytes of items than it should, unless a single item is larger; the end comes last."""
    monkeypatch.setattr(stream_sender, "FRAME_BYTES", 10)
    client = Client(at_once=False)
    client.sender().run(Items(["first", "a" * 3, "b" * 3, "c" * 3, "d" * 30, "e"])())
    while not client.ends:
        client.confirm()
    assert client.items == ["first", "a" * 3, "b" * 3, "c" * 3, "d" * 30, "e"]
    assert [len(frame.items or ()) for frame in client.frames] == [1, 2, 1, 1, 1]
    assert [frame.seq for frame in client.frames] == [0, 1, 3, 4, 5]
    assert [frame.ending for frame in client.frames] == [False] * 4 + [True]


def test_the_generator_waits_for_its_client() -> None:
    """No more items are yielded than the window ahead of what the client has taken, whatever it says and how often."""
    client, items = Client(), Items(range(10))
    sender = client.sender(window=3)
    thread = in_thread(lambda: sender.run(items()))
    for _ in range(3):
        assert client.come.acquire(timeout=EVENT_TIMEOUT)
    assert items.yielded == 3
    for taken in (2, 2, 1, -5):
        sender.on_control(Control("c", "credit", taken))
    for _ in range(2):
        assert client.come.acquire(timeout=EVENT_TIMEOUT)
    assert items.yielded == 5
    assert not client.ends
    sender.on_control(Control("c", "credit", 100))  # more than there was: taken for all of it
    for _ in range(3):
        assert client.come.acquire(timeout=EVENT_TIMEOUT)
    assert items.yielded == 8
    sender.on_control(Control("c", "keepalive", 8))  # the next frame makes up for a lost one
    thread.join(EVENT_TIMEOUT)
    assert client.items == list(range(10))
    assert client.ends == [None]


def test_no_client_has_a_generator_run_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a client that reads slowly is bounded, however many items it asks for, and however large."""
    for bound, window_bytes, items in (
        ("MAX_WINDOW", None, 3),
        ("MAX_WINDOW", 10**9, 3),
        ("MAX_BYTES", None, 3),  # Two bytes each; the first is being sent, and no longer counts.
        ("MAX_BYTES", 10**9, 2),
        ("MAX_BYTES", 1, 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(stream_sender, bound, 3)
            patch.setattr(stream_sender, "LOST_AFTER", 0.2)  # Then the client counts as dead, and the stream ends.
            client, values = Client(at_once=False), Items(range(10, 99))
            client.sender(window=10**9, window_bytes=window_bytes).run(values())
            assert values.closed
            assert values.yielded == items


def test_the_window_grows_with_what_the_client_takes() -> None:
    """The generator is ahead by as many items as the client has taken: by 100 at first, by the window at most."""
    client, items = Client(), Items(range(2000))
    sender = client.sender(window=500)
    thread = in_thread(lambda: sender.run(items()))
    for taken, ahead in ((0, 100), (50, 100), (100, 100), (150, 150), (300, 300), (499, 499), (600, 500), (1000, 500)):
        sender.on_control(Control("c", "keepalive", taken))
        stops_at(taken + ahead, items, thread)
    for taken in (1500, 2000):
        sender.on_control(Control("c", "credit", taken))
        stops_at(2000, items)
    thread.join(EVENT_TIMEOUT)
    assert client.items == list(range(2000))


def test_large_items_wait_for_credit() -> None:
    """A client that counts bytes is sent no more than it asked for; those of a frame count until all of it is taken."""
    client, items = Client(at_once=False), Items(range(100, 199))  # three bytes each
    sender = client.sender(window=100, window_bytes=10)
    thread = in_thread(lambda: sender.run(items()))
    until(lambda: items.yielded == 4, "12 bytes", EVENT_TIMEOUT)
    client.confirm()
    assert [len(frame.items or ()) for frame in client.frames] == [1, 3]
    for taken, yielded in ((0, 4), (1, 5), (3, 5), (4, 8), (4, 8)):
        sender.on_control(Control("c", "keepalive", taken))
        stops_at(yielded, items, thread)
    sender.on_control(Control("c", "cancel", 4))
    thread.join(EVENT_TIMEOUT)
    assert items.closed


def test_an_item_is_written_when_it_is_yielded() -> None:
    """A generator may change what it has yielded: the client gets it as it was, also where it is sent later."""
    client = Client(at_once=False)

    def generator() -> Generator[list[int], None, None]:
        item: list[int] = []
        for number in range(5):
            item.append(number)
            yield item

    client.sender().run(generator())
    client.confirm()
    assert client.items == [list(range(number + 1)) for number in range(5)]


def test_an_item_goes_out_at_once() -> None:
    """What a slow generator yields is on its way before the next item is asked for, and each goes alone."""
    client = Client()

    def generator() -> Generator[int, None, None]:
        for number in range(5):
            assert client.items == list(range(number))
            yield number

    client.sender().run(generator())
    assert client.items == list(range(5))


@pytest.mark.parametrize("window", [2, 100, 5000])
def test_no_item_is_lost_between_two_threads(window: int) -> None:
    """However the generator and the one who says what was sent take turns, each item goes out once and in order."""
    count = 5000
    client, items = Client(at_once=False), Items(range(count))
    sender = client.sender(window)
    thread = in_thread(lambda: sender.run(items()))
    confirmed = 0
    while not client.ends:
        assert client.come.acquire(timeout=EVENT_TIMEOUT), "a frame"
        confirmed += len(client.frames[-1].items or ())
        until(lambda: bool(client._waiting), "what has come", EVENT_TIMEOUT)
        sender.on_control(Control("c", "credit", confirmed))
        client.confirm()
    thread.join(EVENT_TIMEOUT)
    assert client.items == list(range(count))
    assert [frame.seq for frame in client.frames] == [
        sum(len(frame.items or ()) for frame in client.frames[:number]) for number in range(len(client.frames))
    ]


@pytest.mark.parametrize("window", [1, 5])
def test_cancel(window: int) -> None:
    """A client that wants no more has the generator closed, and is sent no end."""
    client, items = Client(), Items(range(window + 5))
    sender = client.sender(window)
    thread = in_thread(lambda: sender.run(items()))
    for _ in range(window):
        assert client.come.acquire(timeout=EVENT_TIMEOUT)
    sender.on_control(Control("c", "cancel"))
    thread.join(EVENT_TIMEOUT)
    assert items.closed
    assert client.ends == [None]
    assert not any(frame.ending for frame in client.frames)


def test_cancel_before_it_begins() -> None:
    """A stream that is cancelled before it begins yields nothing."""
    client, items = Client(), Items("abc")
    sender = client.sender()
    sender.on_control(Control("c", "cancel"))
    sender.run(items())
    assert not client.frames
    assert items.yielded == 0
    assert client.ends == [None]


class Clock:
    """Stands in for the time."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time


def test_a_client_that_has_fallen_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that was silent for three keepalives counts as lost: the generator is closed. A keepalive counts."""
    clock = Clock()
    monkeypatch.setattr(stream_sender, "Loop", clock)
    client = Client()
    sender = client.sender()
    closed: list[bool] = []

    def generator() -> Generator[int, None, None]:
        try:
            yield 0
            clock.time += LOST_AFTER - 1
            sender.on_control(Control("c", "keepalive"))
            clock.time += LOST_AFTER - 1
            yield 1
            clock.time += 1
            yield 2
        finally:
            closed.append(True)

    sender.run(generator())
    assert closed
    assert client.items == [0, 1, 2]
    assert not client.frames[-1].ending
    assert client.ends == [None]


def test_silence_while_this_side_is_cut_off_is_not_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in which nothing can be heard does not count: a client's silence counts from the reconnect on."""
    clock = Clock()
    monkeypatch.setattr(stream_sender, "Loop", clock)
    client = Client()
    sender = client.sender()

    def generator() -> Generator[int, None, None]:
        client.driver.up_since = None
        clock.time += 10 * LOST_AFTER
        yield 0
        client.driver.up_since = clock.time
        clock.time += LOST_AFTER - 1
        yield 1
        clock.time += 1
        yield 2
        raise AssertionError("the client has been silent for too long")

    sender.run(generator())
    assert client.items == [0, 1, 2]


def test_a_client_falls_silent_while_the_generator_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is interrupted, once: it might never yield again. A time in which nothing can be heard does not count."""
    clock = Clock()
    monkeypatch.setattr(stream_sender, "Loop", clock)
    client = Client()
    sender = client.sender()

    def passes(seconds: float) -> int:
        clock.time += seconds
        sender.check(clock.time)
        return client.abandoned

    assert passes(LOST_AFTER - 1) == 0
    sender.on_control(Control("c", "keepalive"))
    assert passes(LOST_AFTER - 1) == 0
    client.driver.up_since = None
    assert passes(LOST_AFTER) == 0
    client.driver.up_since = clock.time
    assert passes(LOST_AFTER - 1) == 0
    assert passes(1) == 1
    assert passes(LOST_AFTER) == 1


@pytest.mark.parametrize("error", [MessageUndeliverable("gone"), MessageTooLarge("more than it takes")])
def test_nobody_takes_more_while_the_generator_waits(error: Exception) -> None:
    """A generator whose client cannot be reached, or has got an error, is interrupted; its own end sends no more."""
    client = Client(at_once=False)
    sender = client.sender()

    def generator() -> Generator[int, None, None]:
        yield 0
        client.confirm(error)
        if isinstance(error, MessageTooLarge):
            client.confirm()  # the frame with that error
        assert client.abandoned == 1
        raise CallCancelled("interrupted")

    with pytest.raises(CallCancelled) as caught:
        sender.run(generator())
    frames = len(client.frames)
    sender.end(serialize_failure(caught.value))
    assert len(client.frames) == frames
    assert len(client.ends) == 1


def test_a_client_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a frame cannot be delivered the generator is closed at once, and the end says why."""
    monkeypatch.setattr(stream_sender, "LOST_AFTER", 1000.0)
    client, items = Client(at_once=False), Items(iter(int, 1))
    sender = client.sender(window=10)
    thread = in_thread(lambda: sender.run(items()))
    assert client.come.acquire(timeout=EVENT_TIMEOUT)
    error = MessageUndeliverable("gone")
    client.confirm(error)
    thread.join(EVENT_TIMEOUT)
    assert items.closed
    assert client.ends[0] is error
    assert len(client.ends) == 1


def test_an_exception_midway() -> None:
    """What the generator raises is raised by `run`, and `end` sends it to the client after the items before."""
    client, items = Client(at_once=False), Items("ab", KeyError("midway"))
    sender = client.sender()
    with pytest.raises(KeyError):
        sender.run(items())
    sender.end('{"class": "KeyError"}')
    client.confirm()
    assert client.items == ["a", "b"]
    assert (client.frames[-1].ending, client.frames[-1].failure) == (True, '{"class": "KeyError"}')
    client.confirm()
    assert client.ends == [None]


def test_an_item_that_cannot_travel() -> None:
    """An item that cannot be written is an error of the stream, and the generator is closed."""
    client, items = Client(), Items(["a", object(), "b"])
    with pytest.raises(SerializationError, match="an item"):
        client.sender().run(items())
    assert client.items == ["a"]
    assert items.closed


@pytest.mark.parametrize("sent", [False, True])
def test_nothing_follows_the_error_of_a_too_large_item(sent: bool) -> None:
    """What the generator yields while that error is being sent, or after it, does not take the lost item's place."""
    client = Client(at_once=False)

    def generator() -> Generator[str, None, None]:
        yield "too large"
        yield "waits"
        client.confirm(MessageTooLarge("more than it takes"))
        if sent:
            client.confirm()
        yield "late"

    client.sender().run(generator())
    if not sent:
        client.confirm()
    assert [(len(frame.items or ()), frame.seq, frame.ending) for frame in client.frames] == [
        (1, 0, False),
        (0, 0, True),
    ]
    assert len(client.ends) == 1


def test_an_item_that_comes_just_then_does_not_take_the_place_of_one_that_was_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what is yielded at the very moment at which that error is written is not sent."""
    client, go_on = Client(at_once=False), threading.Event()
    sender = client.sender()

    def generator() -> Generator[str, None, None]:
        yield "too large"
        go_on.wait(EVENT_TIMEOUT)
        yield "late"

    def write(error: BaseException) -> str:
        go_on.set()
        until(lambda: bool(sender._buffer), "the late item", EVENT_TIMEOUT)
        return serialize_failure(error)

    monkeypatch.setattr(stream_sender, "serialize_failure", write)
    thread = in_thread(lambda: sender.run(generator()))
    assert client.come.acquire(timeout=EVENT_TIMEOUT)
    client.confirm(MessageTooLarge("more than it takes"))
    thread.join(EVENT_TIMEOUT)
    client.confirm()
    assert [(frame.items, frame.seq, frame.ending) for frame in client.frames[1:]] == [([], 0, True)]
    assert len(client.ends) == 1


def test_what_waits_is_dropped_where_the_client_cancels() -> None:
    """A client that wants no more is sent nothing of what had gathered."""
    client, items = Client(at_once=False), Items(range(50))
    sender = client.sender(window=20)
    thread = in_thread(lambda: sender.run(items()))
    until(lambda: items.yielded == 20, "a full window", EVENT_TIMEOUT)
    sender.on_control(Control("c", "cancel"))
    thread.join(EVENT_TIMEOUT)
    client.confirm()
    assert client.items == [0]
    assert client.ends == [None]


def test_an_item_that_is_too_large() -> None:
    """If a frame is too large for the message system, the client is sent an error, with the number that it expects."""
    client, items = Client(at_once=False), Items(iter(lambda: "x", "y"))
    sender = client.sender(window=5)
    thread = in_thread(lambda: sender.run(items()))
    assert client.come.acquire(timeout=EVENT_TIMEOUT)
    client.confirm()
    assert client.come.acquire(timeout=EVENT_TIMEOUT)
    seq = client.frames[1].seq
    client.confirm(MessageTooLarge("more than it takes"))
    thread.join(EVENT_TIMEOUT)
    last = client.frames[-1]
    assert (last.ending, last.items, last.seq) == (True, [], seq)
    assert last.failure is not None
    assert type(rebuild_failure(last.failure, ())) is MessageTooLarge
    assert not client.ends
    client.confirm()
    assert len(client.ends) == 1
    assert items.closed


def test_a_forked_child_leaves_the_stream_to_its_parent() -> None:
    """What it is told of a frame that was on its way changes nothing, even if a thread of the parent is at work."""
    client = Client(at_once=False)
    sender = client.sender()
    run = in_thread(lambda: sender.run(Items(range(2))()))
    until(lambda: sender._ended, "the end of the generator", EVENT_TIMEOUT)
    run.join()
    with holding(sender._lock):
        assert exit_code_of(lambda: client.confirm(CallCancelled("the process forked"))) == 0
    client.confirm()
    client.confirm()
    assert client.items == [0, 1]
    assert client.ends == [None]
