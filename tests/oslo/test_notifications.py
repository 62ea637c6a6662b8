"""Notifications of an unchanged oslo.messaging, in memory."""

from __future__ import annotations

import json
import queue
import threading
from typing import Any

import pytest

from msgbus.drivers.fake import FakeDriver, get_bus
from msgbus.lowlevel import Address, Capability, now
from msgbus.oslo.settings import Settings
from tests.oslo.support import Service, oslo_messaging
from tests.support import EVENT_TIMEOUT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Reader:
    """Keeps what it is notified of; `answers` are what it returns, one after another."""

    def __init__(self, *answers: Any) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self._answers = list(answers)

    def info(self, _ctxt: Any, publisher_id: str, event_type: str, payload: Any, _metadata: Any) -> Any:
        self.events.put(("info", publisher_id, event_type, payload))
        return self._answers.pop(0) if self._answers else None

    def error(self, _ctxt: Any, publisher_id: str, event_type: str, payload: Any, _metadata: Any) -> None:
        self.events.put(("error", publisher_id, event_type, payload))

    def taken(self) -> Any:
        return self.events.get(timeout=EVENT_TIMEOUT)


class BatchReader:
    """Keeps the payloads of each batch."""

    def __init__(self, *answers: Any) -> None:
        self.batches: queue.Queue[list[Any]] = queue.Queue()
        self._answers = list(answers)

    def info(self, messages: list[dict[str, Any]]) -> Any:
        self.batches.put([message["payload"] for message in messages])
        return self._answers.pop(0) if self._answers else None

    def taken(self) -> list[Any]:
        return self.batches.get(timeout=EVENT_TIMEOUT)


@pytest.mark.parametrize("driver", ["messaging", "messagingv2"])
def test_priorities_topics_and_both_versions(service: Service, driver: str) -> None:
    """Each notification arrives with its priority; those of a priority that no endpoint has are not subscribed to."""
    reader = Reader()
    service.listen(reader, "n", "m")
    notifier = service.notifier(driver, "m")
    notifier.info({}, "made", {"id": 1})
    assert reader.taken() == ("info", "publisher", "made", {"id": 1})
    notifier.debug({}, "made", {"id": 2})
    notifier.error({}, "made", {"id": 3})
    assert reader.taken() == ("error", "publisher", "made", {"id": 3})


@pytest.mark.parametrize(("driver", "enveloped"), [("messaging", False), ("messagingv2", True)])
def test_the_first_version_has_no_envelope(service: Service, driver: str, enveloped: bool) -> None:
    """As readers of that version expect it."""
    transport = service.notification_transport()._driver.transport
    bodies: queue.Queue[bytes] = queue.Queue()
    transport.subscribe(
        [Address("topic", "openstack", "n.info")],
        lambda delivery: bodies.put(delivery.message.body),
        prefetch=1,
        deadline=now() + EVENT_TIMEOUT,
    )
    service.notifier(driver).info({}, "made", 1)
    assert ("oslo.message" in json.loads(bodies.get(timeout=EVENT_TIMEOUT))) is enveloped


def test_notifications_wait_for_a_reader(service: Service) -> None:
    """Where the message system stores messages."""
    service.notifier().info({}, "made", 1)
    reader = Reader()
    service.listen(reader)
    assert reader.taken()[3] == 1


def test_pools_get_one_copy_each(service: Service) -> None:
    """Besides the listeners without a pool, which share another one."""
    alone, left, right, other = Reader(), Reader(), Reader(), Reader()
    service.listen(alone)
    service.listen(left, pool="p")
    service.listen(right, pool="p")
    service.listen(other, pool="q")
    notifier = service.notifier()
    for number in range(10):
        notifier.info({}, "made", number)
    assert sorted(alone.taken()[3] for _ in range(10)) == list(range(10))
    assert sorted(other.taken()[3] for _ in range(10)) == list(range(10))
    shared = [reader.events for reader in (left, right)]
    end = now() + EVENT_TIMEOUT
    found: list[int] = []
    while len(found) < 10 and now() < end:
        for events in shared:
            while not events.empty():
                found.append(events.get()[3])
    assert sorted(found) == list(range(10))


def test_full_batches_and_the_rest_after_a_while(service: Service) -> None:
    """The time of a batch begins with its first message."""
    reader = BatchReader()
    service.listen(reader, batch_size=100, batch_timeout=2.0)
    notifier = service.notifier()
    for number in range(205):
        notifier.info({}, "made", number)
    assert [len(reader.taken()) for _ in range(3)] == [100, 100, 5]


def test_many_small_batches(service: Service) -> None:
    """Thousands of them wait when the listener starts: none is lost, and nothing recurses."""
    notifier = service.notifier()
    for number in range(3000):
        notifier.info({}, "made", number)
    reader = BatchReader()
    service.listen(reader, batch_size=2, batch_timeout=10)
    found = [reader.taken() for _ in range(1500)]
    assert {len(batch) for batch in found} == {2}
    assert sorted(number for batch in found for number in batch) == list(range(3000))


def test_no_part_of_a_large_batch_comes_twice(service: Service) -> None:
    """When its connection is lost all of it is delivered again."""
    reader = BatchReader()
    listener = service.listen(reader, batch_size=1500, batch_timeout=1000)
    notifier = service.notifier()
    for number in range(1499):
        notifier.info({}, "made", number)
    gathered = listener.listener._gathered
    end = now() + EVENT_TIMEOUT
    while len(gathered) < 1499 and now() < end:
        threading.Event().wait(0.01)
    get_bus(service.url.removeprefix("msgbus+")).cut()
    notifier.info({}, "made", 1499)
    assert sorted(reader.taken()) == list(range(1500))


def test_a_batch_without_a_size_ends_with_its_time(service: Service) -> None:
    """All that comes in that time is one batch."""
    reader = BatchReader()
    service.listen(reader, batch_timeout=1.5)
    notifier = service.notifier()
    for number in range(3):
        notifier.info({}, "made", number)
    assert reader.taken() == [0, 1, 2]


@pytest.mark.parametrize("size", [40_000, 100_000])
def test_a_batch_is_as_large_as_message_systems_allow(
    service: Service, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """RabbitMQ has no number for more; such a listener waited for ever when it was started."""
    subscribe, found = FakeDriver.subscribe, []

    def note(driver: FakeDriver, addresses: Any, on_delivery: Any, *, prefetch: int) -> Any:
        found.append(prefetch)
        return subscribe(driver, addresses, on_delivery, prefetch=prefetch)

    monkeypatch.setattr(FakeDriver, "subscribe", note)
    listener = service.listen(BatchReader(), batch_size=size).listener
    assert (found, listener.batch_size) == ([65_535], min(size, 65_535))


def test_a_stopped_listener_passes_on_a_batch_that_is_not_full(service: Service) -> None:
    """Otherwise its messages would wait for the next listener."""
    reader = BatchReader()
    listener = service.listen(reader, batch_size=100, batch_timeout=1000)
    service.notifier().info({}, "made", 1)
    gathered = listener.listener._gathered
    end = now() + EVENT_TIMEOUT
    while not gathered and now() < end:
        threading.Event().wait(0.01)
    listener.stop()
    listener.wait()
    assert reader.taken() == [1]


REQUEUE = oslo_messaging.NotificationResult.REQUEUE


def test_what_is_given_back_comes_again(service: Service) -> None:
    """Also many times; the log and the processor do not fill up meanwhile, since it takes longer each time."""
    reader = Reader(*[REQUEUE] * 4)
    service.listen(reader, allow_requeue=True)
    service.notifier().info({}, "made", 1)
    assert [reader.taken()[3] for _ in range(5)] == [1] * 5


def test_many_that_are_given_back_keep_no_other_one_away(service: Service) -> None:
    """As many as may be unsettled, which are the first to come again each time."""

    class Choosy(Reader):
        def info(self, _ctxt: Any, publisher_id: str, event_type: str, payload: Any, _metadata: Any) -> Any:
            if event_type == "unwelcome":
                return REQUEUE
            return super().info(_ctxt, publisher_id, event_type, payload, _metadata)

    notifier = service.notifier()
    for number in range(2 * Settings.prefetch):
        notifier.info({}, "unwelcome", number)
    notifier.info({}, "welcome", 1)
    reader = Choosy()
    listener = service.listen(reader, allow_requeue=True)
    assert reader.taken()[3] == 1
    listener.stop()
    listener.wait()
    handled = Reader()
    service.listen(handled)
    assert sorted(handled.taken()[3] for _ in range(2 * Settings.prefetch)) == list(range(2 * Settings.prefetch))


def test_a_batch_is_given_back_as_a_whole(service: Service) -> None:
    """And comes again as one."""
    reader = BatchReader(REQUEUE)
    service.listen(reader, batch_size=3, batch_timeout=1000, allow_requeue=True)
    notifier = service.notifier()
    for number in range(3):
        notifier.info({}, "made", number)
    assert [sorted(reader.taken()) for _ in range(2)] == [[0, 1, 2], [0, 1, 2]]


def test_unread_notifications_are_said_once_where_nothing_is_stored(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that notifies by default must not fill its log, and the caller gets no error."""
    capabilities = FakeDriver.capabilities - {Capability.STORAGE}
    monkeypatch.setattr(FakeDriver, "capabilities", capabilities)
    notifier = service.notifier("messagingv2", "n", "m")
    for number in range(20):
        notifier.info({}, "made", number)
    lines = [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"]
    assert len(lines) == 2
    assert all("nobody reads notifications" in line for line in lines)
    reader = Reader()
    service.listen(reader)
    notifier.info({}, "made", 1)
    assert reader.taken()[3] == 1


def test_what_the_message_system_takes_back(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message system that cannot do that says so when it is asked."""
    driver = service.notification_transport()._driver
    driver.require_features(requeue=True)
    monkeypatch.setattr(FakeDriver, "capabilities", FakeDriver.capabilities - {Capability.REQUEUE})
    with pytest.raises(NotImplementedError):
        driver.require_features(requeue=True)
