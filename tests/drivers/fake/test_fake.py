from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import CallCancelled, MessageTooLarge, MessageUndeliverable, TransportBlocked, TransportUnavailable
from msgbus.drivers.base import Address, Delivery, Message, QueueInfo, Sent
from msgbus.drivers.fake import Bus, FakeDriver, get_bus
from msgbus.transport import Transport
from tests.support import EVENT_TIMEOUT, new_transport, new_url

TOPIC = Address("topic", "x", "foo")
SERVER = Address("server", "x", "foo", "h1")
DEAD = Address("dead", "x", "foo")


def message(body: bytes = b"body", **more: Any) -> Message:
    """A message to be sent."""
    return Message(body, "text/plain", "id", **more)


class Inbox(list[Delivery]):
    """Gathers deliveries."""

    def __init__(self, *, accepting: bool = True) -> None:
        super().__init__()
        self._come = threading.Semaphore(0)
        self._accepting = accepting

    def __call__(self, delivery: Delivery) -> None:
        self.append(delivery)
        if self._accepting:
            delivery.accept()
        self._come.release()

    def wait(self) -> None:
        assert self._come.acquire(timeout=EVENT_TIMEOUT)

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.message.body for delivery in self]


@pytest.fixture
def transport() -> Iterator[Transport]:
    """A transport on a bus of its own."""
    transport = new_transport()
    yield transport
    transport.cleanup()


@pytest.fixture
def driver(transport: Transport) -> FakeDriver:
    """Its driver."""
    assert isinstance(transport.driver, FakeDriver)
    return transport.driver


@pytest.fixture
def bus(transport: Transport) -> Bus:
    """Its bus."""
    return get_bus(transport.url)


def send(driver: FakeDriver, address: Address = TOPIC, mandatory: bool = True, **more: Any) -> Future[Sent]:
    """Send a message to an address."""
    return driver.send(address, message(**more), mandatory=mandatory)


def test_fail_next(driver: FakeDriver, bus: Bus) -> None:
    """`fail_next` makes the next sends fail with that error; they reach nobody."""
    inbox = Inbox()
    driver.subscribe([TOPIC], inbox, prefetch=1)
    error = TransportBlocked("full")
    bus.fail_next(error, 2)
    bus.fail_next(TransportUnavailable("cut"))
    assert send(driver).exception() is error
    assert send(driver).exception() is error
    assert type(send(driver).exception()) is TransportUnavailable
    assert send(driver).result() == Sent(1)
    assert len(inbox) == 1


def test_lose_next(driver: FakeDriver, bus: Bus) -> None:
    """`lose_next` takes the next messages as if all were well, and nobody gets them."""
    inbox = Inbox()
    driver.subscribe([TOPIC], inbox, prefetch=1)
    bus.lose_next(2)
    for body in (b"1", b"2", b"3"):
        assert send(driver, body=body).result() == Sent(1)
    assert inbox.bodies == [b"3"]


def test_delay(driver: FakeDriver, bus: Bus) -> None:
    """With a delay a send is done at once, and the message comes later, on another thread."""
    inbox = Inbox()
    driver.subscribe([TOPIC], inbox, prefetch=1)
    threads: list[threading.Thread] = []
    driver.subscribe([SERVER], lambda _delivery: threads.append(threading.current_thread()), prefetch=1)
    bus.delay = 0.001
    assert send(driver, SERVER).result(0) == Sent(1)
    assert send(driver).result(0) == Sent(1)
    inbox.wait()
    assert inbox.bodies == [b"body"]
    assert threads != [threading.current_thread()]


def test_delayed_copies_are_apart(driver: FakeDriver, bus: Bus) -> None:
    """What happens to one server's copy of a delayed message does not show on another's."""
    inboxes = [Inbox(accepting=False), Inbox(accepting=False)]
    for number, inbox in enumerate(inboxes):
        driver.subscribe([Address("fanout", "x", "foo", f"h{number}")], inbox, prefetch=1)
    bus.delay = 0.001
    assert send(driver, Address("fanout", "x", "foo"), mandatory=False).result() == Sent(2)
    for inbox in inboxes:
        inbox.wait()
    assert [(inbox[0].attempts, inbox[0].redelivered) for inbox in inboxes] == [(0, False), (0, False)]
    inboxes[0][0].reject(requeue=True)
    inboxes[0].wait()
    assert (inboxes[0][1].attempts, inboxes[0][1].redelivered) == (1, True)
    bus.cut()
    inboxes[1].wait()
    assert inboxes[1][1].attempts == 1


def test_cut(driver: FakeDriver, bus: Bus) -> None:
    """`cut` delivers unaccepted messages again, as redelivered and in the same order."""
    inbox = Inbox(accepting=False)
    driver.subscribe([TOPIC], inbox, prefetch=3)
    for body in (b"1", b"2", b"3"):
        send(driver, body=body)
    inbox[0].accept()
    bus.cut()
    assert inbox.bodies == [b"1", b"2", b"3", b"2", b"3"]
    assert [delivery.redelivered for delivery in inbox] == [False] * 3 + [True] * 2
    assert [delivery.attempts for delivery in inbox] == [0, 0, 0, 1, 1]
    assert inbox[1].accept() is False
    assert inbox[3].accept() is True
    assert inbox[3].accept() is True


def test_stop_and_start(driver: FakeDriver, bus: Bus) -> None:
    """While the bus is away sends wait, in their order; when it comes back they go out, and subscriptions go on."""
    inbox = Inbox()
    driver.subscribe([TOPIC], inbox, prefetch=1)
    bus.stop()
    sends = [send(driver, body=body) for body in (b"1", b"2")]
    assert not any(sent.done() for sent in sends)
    assert not inbox
    bus.start()
    assert [sent.result(0) for sent in sends] == [Sent(1), Sent(1)]
    assert inbox.bodies == [b"1", b"2"]


def test_a_send_that_waits_ends_with_its_ttl(driver: FakeDriver, bus: Bus) -> None:
    """A message whose ttl ends while the bus is away was not delivered, and is not delivered later."""
    inbox = Inbox()
    driver.subscribe([TOPIC], inbox, prefetch=1)
    bus.stop()
    error = send(driver, ttl=0.01).exception(EVENT_TIMEOUT)
    assert isinstance(error, TransportUnavailable)
    assert not error.maybe_delivered
    bus.start()
    assert not inbox


def test_a_send_while_the_bus_comes_back(driver: FakeDriver, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is sent at the very moment at which the bus comes back does not wait for the next time."""
    wait_for_start = bus._wait_for_start

    def start_first(*args: Any) -> None:
        bus.start()
        wait_for_start(*args)

    inbox = Inbox()
    driver.subscribe([TOPIC], inbox, prefetch=1)
    bus.stop()
    monkeypatch.setattr(bus, "_wait_for_start", start_first)
    assert send(driver).result(0) == Sent(1)
    assert inbox.bodies == [b"body"]


def test_stop_takes_back_what_is_not_accepted(driver: FakeDriver, bus: Bus) -> None:
    """`stop` breaks the connections: unaccepted messages come again when the bus is back, as redelivered."""
    inbox = Inbox(accepting=False)
    driver.subscribe([TOPIC], inbox, prefetch=1)
    send(driver)
    bus.stop()
    assert inbox[0].accept() is False
    assert len(inbox) == 1
    bus.start()
    assert [delivery.redelivered for delivery in inbox] == [False, True]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("fake://a/", "fake://a/", True),
        ("fake://a", "fake://a/", True),
        ("fake://a/?max_message_size=5", "fake://a/", True),
        ("fake://a/v", "fake://a/", False),
        ("fake://a/", "fake://b/", False),
        ("fake://", "fake://b/", False),
    ],
)
def test_buses(one: str, other: str, shared: bool) -> None:
    """Transports whose URLs are equal up to the question mark share a bus, and others share nothing."""
    first, second = new_transport(one), new_transport(other)
    inbox = Inbox()
    first.driver.subscribe([TOPIC], inbox, prefetch=1)
    sent = second.driver.send(TOPIC, message(), mandatory=True)
    assert (sent.exception() is None) is shared
    assert len(inbox) == shared
    first.cleanup()
    second.cleanup()


def test_stored_messages_end_with_the_last_transport() -> None:
    """They are deleted when it is closed, even if something still refers to the closed transport."""
    url = new_url()
    first, second = new_transport(url), new_transport(url)
    first.driver.subscribe([TOPIC], Inbox(), prefetch=1).close()
    first.cleanup()
    assert second.driver.send(TOPIC, message(), mandatory=True).exception() is None
    second.cleanup()
    third = new_transport(url)
    assert isinstance(third.driver.send(TOPIC, message(), mandatory=True).exception(), MessageUndeliverable)
    third.cleanup()
    assert first.closed


def test_a_bus_is_forgotten_with_its_last_user() -> None:
    """A bus lives as long as somebody holds it: a later one of the same name is empty."""
    url = new_url()
    bus = get_bus(url)
    bus.lose_next(5)
    assert get_bus(url) is bus
    del bus
    assert get_bus(url)._to_lose == 0


def test_too_large() -> None:
    """What is larger than max_message_size is refused before it is sent; what is as large is not."""
    transport = new_transport(f"{new_url()}?max_message_size=5")
    transport.driver.subscribe([TOPIC], Inbox(), prefetch=1)
    assert transport.driver.send(TOPIC, message(b"12345"), mandatory=True).exception() is None
    error = transport.driver.send(TOPIC, message(b"123456"), mandatory=True).exception()
    assert isinstance(error, MessageTooLarge)
    assert "6 bytes" in str(error)
    assert "at most 5" in str(error)
    transport.cleanup()


@pytest.mark.parametrize("address", [TOPIC, SERVER, Address("inbox", name="gone")], ids=lambda address: address.kind)
def test_nobody_there(driver: FakeDriver, address: Address) -> None:
    """Where nobody has ever listened a mandatory message is undeliverable, and another one reaches nobody."""
    assert type(send(driver, address).exception()) is MessageUndeliverable
    assert send(driver, address, mandatory=False).result() == Sent(0)


def test_dead_letters_are_stored_without_a_subscriber(driver: FakeDriver) -> None:
    """Dead letters are kept though nobody has listened for them yet."""
    send(driver, DEAD, mandatory=False)
    assert driver.inspect(DEAD).result() == QueueInfo(0, 1)
    inbox = Inbox()
    driver.subscribe([DEAD], inbox, prefetch=1)
    assert inbox.bodies == [b"body"]


def test_inspect(driver: FakeDriver) -> None:
    """`inspect` counts consumers and what waits, expired messages left out; what does not exist is undeliverable."""
    assert type(driver.inspect(TOPIC).exception()) is MessageUndeliverable
    subscription = driver.subscribe([TOPIC], Inbox(accepting=False), prefetch=1)
    send(driver)
    send(driver)
    send(driver, ttl=0.0)
    assert driver.inspect(TOPIC).result() == QueueInfo(1, 1)
    subscription.close()
    assert driver.inspect(TOPIC).result() == QueueInfo(0, 2)


def test_servers_are_listed_while_they_subscribe(driver: FakeDriver) -> None:
    """Their addresses; not one whose queue is all that is left."""
    found = driver.known_servers().result()
    assert found == []
    server = TOPIC._replace(kind="server", server="h1")
    subscription = driver.subscribe([TOPIC, server], Inbox(), prefetch=1)
    assert driver.known_servers().result() == [server]
    subscription.close()
    assert driver.known_servers().result() == []
    driver.close()
    assert type(driver.known_servers().exception()) is CallCancelled


def test_expired_messages_are_dropped(driver: FakeDriver) -> None:
    """Messages that expired while they waited are not delivered; the others carry what is left of their ttl."""
    subscription = driver.subscribe([TOPIC], Inbox(), prefetch=1)
    subscription.close()
    send(driver, body=b"gone", ttl=0.0)
    send(driver, body=b"left", ttl=60.0)
    inbox = Inbox()
    driver.subscribe([TOPIC], inbox, prefetch=5)
    assert inbox.bodies == [b"left"]
    assert inbox[0].message.ttl is not None
    assert 0 < inbox[0].message.ttl <= 60


def test_prefetch_and_turns(driver: FakeDriver) -> None:
    """Idle consumers get messages in turn, none more than its prefetch; the rest waits for a consumer with room."""
    inboxes = [Inbox(accepting=False), Inbox(accepting=False)]
    for inbox in inboxes:
        driver.subscribe([TOPIC], inbox, prefetch=2)
    for number in range(6):
        send(driver, body=b"%d" % number)
    assert [inbox.bodies for inbox in inboxes] == [[b"0", b"2"], [b"1", b"3"]]
    inboxes[1][0].accept()
    assert inboxes[1].bodies == [b"1", b"3", b"4"]
    inboxes[0][0].reject(requeue=False)
    assert inboxes[0].bodies == [b"0", b"2", b"5"]


def test_pools(driver: FakeDriver) -> None:
    """What is sent to a topic goes to one of its subscribers and to each pool; what is sent to a server does not."""
    topic, pool = Inbox(), Inbox()
    driver.subscribe([TOPIC, SERVER], topic, prefetch=1)
    driver.subscribe([Address("pool", "x", "foo", name="p")], pool, prefetch=1)
    assert send(driver).result() == Sent(2)
    assert send(driver, SERVER).result() == Sent(1)
    assert (len(topic), len(pool)) == (2, 1)


def test_fanout_queues_go_with_their_subscriptions(driver: FakeDriver) -> None:
    """A fanout reaches those that are subscribed, two of one name included, and is kept for nobody."""
    at = Address("fanout", "x", "foo", "h1")
    subscriptions = [driver.subscribe([at], Inbox(), prefetch=1) for _ in range(2)]
    to_all = Address("fanout", "x", "foo")
    assert send(driver, to_all, mandatory=False).result() == Sent(2)
    for subscription in subscriptions:
        subscription.close().result(0)
        subscription.close().result(0)
    assert send(driver, to_all, mandatory=False).result() == Sent(0)


def test_an_inbox_is_removed_when_it_is_closed(driver: FakeDriver) -> None:
    """An inbox takes what is sent to it, accepted by itself, until it is closed."""
    got = Inbox(accepting=False)
    inbox = driver.open_inbox(got)
    for _ in range(3):
        send(driver, inbox.address)
    assert len(got) == 3
    inbox.close().result(0)
    assert type(send(driver, inbox.address).exception()) is MessageUndeliverable


def test_stop_of_a_subscription(driver: FakeDriver) -> None:
    """After `stop` nothing is delivered any more; earlier deliveries can still be accepted or given back."""
    inbox = Inbox(accepting=False)
    subscription = driver.subscribe([TOPIC], inbox, prefetch=2)
    send(driver)
    send(driver)
    subscription.stop().result(0)
    send(driver)
    assert len(inbox) == 2
    assert inbox[0].accept() is True
    subscription.close().result(0)
    assert inbox[1].accept() is False
    assert driver.inspect(TOPIC).result() == QueueInfo(0, 2)


def test_close_of_a_driver(driver: FakeDriver, bus: Bus) -> None:
    """A closed driver's waiting sends fail, its subscriptions end, and further sends fail."""
    inbox = Inbox()
    driver.subscribe([TOPIC], inbox, prefetch=1)
    bus.stop()
    sent = send(driver)
    driver.close()
    driver.close()
    assert type(sent.exception(0)) is CallCancelled
    assert type(send(driver).exception(0)) is CallCancelled
    bus.start()
    assert not inbox


def test_calls_of_one_subscription_never_overlap(driver: FakeDriver) -> None:
    """A callback that sends is not called again before it has returned, and still gets everything in order."""
    depth: list[int] = []
    seen: list[bytes] = []
    most: list[int] = []

    def on_delivery(delivery: Delivery) -> None:
        depth.append(1)
        most.append(len(depth))
        delivery.accept()
        seen.append(delivery.message.body)
        if len(seen) < 5:
            send(driver, body=b"%d" % len(seen))
        depth.pop()

    driver.subscribe([TOPIC], on_delivery, prefetch=10)
    send(driver, body=b"0")
    assert seen == [b"0", b"1", b"2", b"3", b"4"]
    assert max(most) == 1


def in_child(func: Callable[[], bool]) -> bool:
    """Run something in a forked child; what it returns."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if func() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # it is what this is about
def test_a_forked_child_starts_clean(driver: FakeDriver, bus: Bus) -> None:
    """In a forked child the bus is empty, and what waited in the parent fails there, and goes on waiting here."""
    inbox = Inbox()
    driver.subscribe([TOPIC], inbox, prefetch=1)
    bus.stop()
    sent = send(driver)

    def child() -> bool:
        return (
            type(sent.exception(0)) is CallCancelled
            and type(send(driver).exception(0)) is MessageUndeliverable
            and not inbox
        )

    assert in_child(child)
    assert not sent.done()
    bus.start()
    assert sent.result(0) == Sent(1)


def test_a_closed_driver_touches_nothing(transport: Transport, driver: FakeDriver) -> None:
    """What it is asked to open gets no message, and those that wait for others are as they were."""
    another = new_transport(str(transport.url))
    assert isinstance(another.driver, FakeDriver)
    driver.subscribe([TOPIC], Inbox(), prefetch=1).close().result(0)
    send(driver).result(0)
    another.cleanup()
    late, inbox = Inbox(), Inbox()
    with pytest.raises(CallCancelled):
        another.driver.subscribe([TOPIC, SERVER], late, prefetch=1).ready.result(0)
    with pytest.raises(CallCancelled):
        another.driver.open_inbox(late).ready.result(0)
    assert late == []
    driver.subscribe([TOPIC], inbox, prefetch=1)
    assert [delivery.redelivered for delivery in inbox] == [False]
    with pytest.raises(MessageUndeliverable):
        send(driver, SERVER).result(0)


def test_a_closed_inbox_is_let_go_of(driver: FakeDriver) -> None:
    """What it would call can be collected while the driver is open."""
    inbox = Inbox()
    gone = weakref.ref(inbox)
    driver.open_inbox(inbox).close().result(0)
    del inbox
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("verb", ["stop", "close"])
def test_a_subscription_has_ended_when_nothing_more_is_on_its_way(driver: FakeDriver, verb: str) -> None:
    """A message that another thread is about to hand over comes before `stop` and `close` are done, not after."""
    busy, go_on, came = threading.Event(), threading.Event(), []

    def take(delivery: Delivery) -> None:
        came.append(delivery.message.body)
        busy.set()
        go_on.wait(EVENT_TIMEOUT)

    subscription = driver.subscribe([TOPIC], take, prefetch=2)
    thread = threading.Thread(target=send, args=(driver,), kwargs={"body": b"first"})
    thread.start()
    assert busy.wait(EVENT_TIMEOUT)
    send(driver, body=b"second").result(0)
    ended = getattr(subscription, verb)()
    assert not ended.done()
    go_on.set()
    ended.result(EVENT_TIMEOUT)
    assert came == [b"first", b"second"]
    thread.join()


def test_a_subscriber_that_raises_costs_its_message_alone(driver: FakeDriver, caplog: pytest.LogCaptureFixture) -> None:
    """The sender does not hear of it, and the next message is delivered."""
    came = []

    def take(delivery: Delivery) -> None:
        came.append(delivery.message.body)
        raise ValueError("a bug")

    driver.subscribe([TOPIC], take, prefetch=5)
    for body in (b"first", b"second"):
        assert send(driver, body=body).result(0) == Sent(1)
    assert came == [b"first", b"second"]
    assert caplog.text.count("a message could not be delivered") == 2
