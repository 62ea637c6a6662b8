"""Listeners whose endpoints get notifications in batches."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import Any

import pytest

import msgbus
import msgbus.notify.batches
from msgbus import failed_casts
from msgbus.conformance.waiting import until
from msgbus.notify.batches import Gatherer
from tests.notify.support import TARGET, Batches, Endpoint, listening, send_raw
from tests.support import EVENT_TIMEOUT

LONG = 3600.0
REQUEUE = msgbus.NotificationResult.REQUEUE


def send(notifier: msgbus.Notifier, *events: str) -> None:
    """Send notifications of the level info."""
    for event in events:
        notifier.info({"user": "ada"}, event, {"event": event})


def test_a_batch_is_complete_with_its_size(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """Then its method is called with all, in their order, as dicts."""
    transport.conf.set_override("executor_thread_pool_size", 1)  # Else two batches may run at once, in any order.
    batches = Batches()
    with listening(transport, batches, batch_size=3):
        send(notifier, "a", "b", "c", "d", "e", "f")
        first = batches.came.get(timeout=EVENT_TIMEOUT)
        assert [one["event_type"] for one in first] == ["a", "b", "c"]
        assert first[0].keys() == {"ctxt", "publisher_id", "event_type", "payload", "metadata"}
        assert (first[0]["ctxt"], first[0]["payload"]) == ({"user": "ada"}, {"event": "a"})
        assert batches.next() == ["d", "e", "f"]


def test_a_batch_is_complete_after_its_time(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """However few have come."""
    batches = Batches()
    with listening(transport, batches, batch_timeout=0.2):
        send(notifier, "a", "b")
        came = batches.next()
        while len(came) < 2:
            came += batches.next()
        assert sorted(came) == ["a", "b"]


def test_with_a_time_alone_a_batch_is_complete_with_half_of_the_prefetch(transport: msgbus.Transport) -> None:
    """The listener may hold no more than the prefetch: it would get nothing more until the time is over."""
    transport.conf.set_override("rpc_prefetch", 4)
    batches = Batches()
    with listening(transport, batches, batch_timeout=LONG):
        send(msgbus.Notifier(transport, driver="messagingv2"), "a", "b", "c", "d", "e", "f")
        assert sorted(batches.next() for _ in range(3)) == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_what_is_gathered_is_a_batch_when_the_listener_stops(
    transport: msgbus.Transport, notifier: msgbus.Notifier
) -> None:
    """Nothing that has come is left."""
    batches = Batches()
    with listening(transport, batches, batch_size=10):
        send(notifier, "a", "b")  # Over the message system in memory they have come when they are sent.
    assert batches.next() == ["a", "b"]


def test_a_batch_that_has_not_begun_when_the_time_of_wait_is_over_goes_to_others(
    transport: msgbus.Transport, notifier: msgbus.Notifier
) -> None:
    """It is not run here as well, and counts as abandoned."""
    transport.conf.set_override("executor_thread_pool_size", 1)
    began, release = threading.Event(), threading.Event()

    class Slow(Batches):
        def info(self, notifications: list[dict[str, Any]]) -> Any:
            super().info(notifications)
            threads.append(threading.current_thread())
            began.set()
            assert release.wait(EVENT_TIMEOUT)

    threads: list[threading.Thread] = []
    slow, other = Slow(), Batches()
    listener = msgbus.get_batch_notification_listener(transport, [TARGET], [slow], batch_size=2)
    listener.start()
    send(notifier, "a", "b", "c")
    assert began.wait(EVENT_TIMEOUT)
    assert listener.wait(0.01) == 2
    release.set()
    threads[0].join(EVENT_TIMEOUT)
    assert slow.next() == ["a", "b"]
    assert slow.came.empty()
    with listening(transport, other, batch_size=3):
        assert sorted(other.next()) == ["a", "b", "c"]


def test_the_method_of_a_batch_may_wait_for_its_listener(
    transport: msgbus.Transport, notifier: msgbus.Notifier
) -> None:
    """It waits for other batches, and not for its own, whatever the levels in that."""
    found: queue.Queue[int] = queue.Queue()

    class Ending:
        def info(self, _notifications: list[dict[str, Any]]) -> None:
            found.put(listener.wait(EVENT_TIMEOUT))

        def warn(self, _notifications: list[dict[str, Any]]) -> None: ...

    listener = msgbus.get_batch_notification_listener(transport, [TARGET], [Ending()], batch_size=3)
    listener.start()
    send(notifier, "a", "b")
    notifier.warn({}, "c", {})
    assert found.get(timeout=2 * EVENT_TIMEOUT) == 0


def test_wait_waits_for_a_stop_that_is_under_way(
    transport: msgbus.Transport, notifier: msgbus.Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the message system has confirmed it, and the last batch has been handled."""
    returned, was_late = threading.Event(), []

    class Slow:
        def info(self, _notifications: list[dict[str, Any]]) -> None:
            was_late.append(returned.wait(0.2))

    listener = msgbus.get_batch_notification_listener(transport, [TARGET], [Slow()], batch_size=10)
    listener.start()
    send(notifier, "a")
    subscription: Any = listener._subscription
    stop, stopping, confirmed = subscription.stop, threading.Event(), Future[None]()

    def stop_slowly() -> Future[None]:
        stop().result(EVENT_TIMEOUT)
        stopping.set()
        transport.loop.call_later(0.2, lambda: confirmed.set_result(None))
        return confirmed

    monkeypatch.setattr(subscription, "stop", stop_slowly)
    stopper = threading.Thread(target=listener.stop)
    stopper.start()
    assert stopping.wait(EVENT_TIMEOUT)
    assert listener.wait(EVENT_TIMEOUT) == 0
    returned.set()
    assert confirmed.done()
    assert was_late == [False]
    stopper.join(EVENT_TIMEOUT)


def test_neither_size_nor_time_is_refused(transport: msgbus.Transport) -> None:
    """Such a batch would never be complete."""
    with pytest.raises(ValueError, match="a batch needs batch_size, batch_timeout, or both"):
        msgbus.get_batch_notification_listener(transport, [TARGET], [Batches()])


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batch_size": 1.5}, {"batch_size": 10_001}, {"batch_timeout": 0}, {"batch_timeout": "1"}],
)
def test_wrong_sizes_and_times_are_refused(transport: msgbus.Transport, options: Any) -> None:
    """When the listener is made."""
    with pytest.raises(ValueError, match=r"batch_(size|timeout) is a"):
        msgbus.get_batch_notification_listener(transport, [TARGET], [Batches()], **options)


def test_a_method_for_single_notifications_is_refused(transport: msgbus.Transport) -> None:
    """A batch listener calls it with a list alone."""

    class Single:
        def info(self, _ctxt: Any, _publisher: Any, _event: Any, _payload: Any, _metadata: Any) -> None: ...

    with pytest.raises(TypeError, match=r"Single.info is called as \(notifications\)"):
        msgbus.get_batch_notification_listener(transport, [TARGET], [Single()], batch_size=1)


@pytest.mark.parametrize("answer", [REQUEUE, ValueError("bad")])
def test_a_whole_batch_comes_again(
    transport: msgbus.Transport, notifier: msgbus.Notifier, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its method returns REQUEUE, or raises."""
    monkeypatch.setattr(failed_casts, "RETRY_DELAYS", (0.001,))
    batches = Batches(answer)
    with listening(transport, batches, batch_size=2, allow_requeue=True):
        send(notifier, "a", "b")
        assert batches.next() == ["a", "b"]
        assert sorted(batches.next()) == ["a", "b"]
    assert batches.came.empty()


@pytest.mark.parametrize("answer", [REQUEUE, ValueError("bad")])
def test_without_allow_requeue_all_endpoints_get_a_batch_whichever_fails(
    transport: msgbus.Transport, notifier: msgbus.Notifier, answer: Any
) -> None:
    """It is in the log."""
    first, second = Batches(answer), Batches()
    with listening(transport, first, second, batch_size=2):
        send(notifier, "a", "b")
        assert (first.next(), second.next()) == (["a", "b"], ["a", "b"])


def test_levels_come_apart_and_one_that_fails_does_not_harm_the_other(
    transport: msgbus.Transport, notifier: msgbus.Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may hold several levels: each has its own method."""
    monkeypatch.setattr(failed_casts, "RETRY_DELAYS", (0.001,))
    came: list[tuple[str, list[str]]] = []

    class Levels:
        def info(self, notifications: list[dict[str, Any]]) -> None:
            came.append(("info", [one["event_type"] for one in notifications]))

        def error(self, notifications: list[dict[str, Any]]) -> None:
            came.append(("error", [one["event_type"] for one in notifications]))
            if len([level for level, _ in came if level == "error"]) == 1:
                raise ValueError("bad")

    with listening(transport, Levels(), batch_size=4, batch_timeout=0.2, allow_requeue=True):
        notifier.info({}, "a", {})
        notifier.error({}, "x", {})
        notifier.info({}, "b", {})
        notifier.error({}, "y", {})
        until(lambda: sum(len(events) for level, events in came if level == "error") >= 4, "errors came again")
    infos = sorted(event for level, events in came for event in events if level == "info")
    errors = sorted(event for level, events in came for event in events if level == "error")
    assert (infos, errors) == (["a", "b"], ["x", "x", "y", "y"])


def test_an_endpoint_gets_the_part_that_its_filter_accepts(
    transport: msgbus.Transport, notifier: msgbus.Notifier
) -> None:
    """Another one in the same listener gets all."""
    some, everything = Batches(), Batches()
    some.filter_rule = msgbus.NotificationFilter(event_type="a")  # type: ignore[attr-defined]
    with listening(transport, some, everything, batch_size=3):
        send(notifier, "a1", "b", "a2")
        assert some.next() == ["a1", "a2"]
        assert everything.next() == ["a1", "b", "a2"]


def test_what_is_no_notification_does_not_harm_its_batch(
    transport: msgbus.Transport, notifier: msgbus.Notifier
) -> None:
    """It is dropped, and the others are handled."""
    batches = Batches()
    with listening(transport, batches, batch_size=3):
        send(notifier, "a")
        send_raw(transport, b"{}")
        send(notifier, "b")
        assert batches.next() == ["a", "b"]


def test_a_large_batch_is_not_limited_by_the_prefetch(transport: msgbus.Transport) -> None:
    """As many as make a batch may come before any is handled."""
    transport.conf.set_override("rpc_prefetch", 1)
    batches = Batches()
    notifier = msgbus.Notifier(transport, driver="messagingv2")
    with listening(transport, batches, batch_size=20):
        send(notifier, *map(str, range(20)))
        assert batches.next() == list(map(str, range(20)))


class Clock:
    """A time, and timers, that go on when the test says so."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.timers: list[tuple[float, Any, tuple[Any, ...]]] = []

    def now(self) -> float:
        return self.time

    def call_later(self, delay: float, func: Any, *args: Any) -> None:
        self.timers.append((self.time + delay, func, args))

    def ring(self) -> None:
        """Go on to the next timer."""
        self.time, func, args = self.timers.pop(0)
        func(*args)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clock of the batches."""
    clock = Clock()
    monkeypatch.setattr(msgbus.notify.batches, "Loop", clock)
    return clock


def test_the_time_begins_with_the_first_notification(clock: Any) -> None:
    """Not before, and each batch has a time of its own: that of an earlier one does not end it."""
    complete: list[Any] = []
    gatherer = Gatherer(2, LONG, clock, complete.append)
    assert clock.timers == []
    gatherer.take(_delivery("a"))
    assert [due for due, *_ in clock.timers] == [1000.0 + LONG]
    clock.time += 1.0
    gatherer.take(_delivery("b"))
    assert len(complete) == 1
    gatherer.take(_delivery("c"))
    clock.ring()  # for the first batch
    assert len(complete) == 1
    clock.ring()
    assert clock.time == 1001.0 + LONG
    assert [len(batch.deliveries) for batch in complete] == [2, 1]
    assert clock.timers == []
    gatherer.take(_delivery("d"))
    assert [due for due, *_ in clock.timers] == [clock.time + LONG]


def test_a_full_batch_leaves_nothing_behind(clock: Any) -> None:
    """Many may become full before the time of the first is over: one timer is left, without their notifications."""
    gatherer = Gatherer(2, LONG, clock, lambda _batch: None)
    for n in range(100):
        gatherer.take(_delivery(str(n)))
    ((_, _, args),) = clock.timers
    assert args == ()
    clock.ring()
    assert clock.timers == []


def _delivery(name: str) -> Any:
    from msgbus.drivers.base import Address, Delivery, Message

    class Plain(Delivery):
        def accept(self) -> bool:
            return True

        def reject(self, requeue: bool) -> None: ...

    return Plain(Address("topic", "", name), Message(b"", "", name), False, None)


def test_a_batch_listener_that_is_killed_by_its_endpoint_goes_on(
    transport: msgbus.Transport, notifier: msgbus.Notifier
) -> None:
    """Also ``sys.exit`` of a method is an error of that batch alone."""
    batches = Batches(SystemExit(1))
    with listening(transport, batches, batch_size=1):
        send(notifier, "a", "b")
        assert sorted([*batches.next(), *batches.next()]) == ["a", "b"]


def test_single_listeners_and_batch_listeners_share_a_topic(
    transport: msgbus.Transport, notifier: msgbus.Notifier
) -> None:
    """Each notification goes to one of them."""
    batches, single = Batches(), Endpoint()
    with listening(transport, batches, batch_size=1), listening(transport, single):
        send(notifier, *map(str, range(20)))
        until(lambda: batches.came.qsize() + single.came.qsize() == 20, "all have come")
