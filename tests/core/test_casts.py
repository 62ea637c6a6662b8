"""`cast_many`: many casts on their way at once."""

from __future__ import annotations

import itertools
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import (
    CallCancelled,
    CastsFailed,
    MessageUndeliverable,
    MessagingTimeout,
    OutcomeUnknown,
    RPCClient,
    RPCVersionCapError,
    SerializationError,
    Target,
    Transport,
    TransportUnavailable,
    get_rpc_client,
)
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Address, Delivery, Message, Sent
from msgbus.drivers.fake import get_bus
from msgbus.encoding import decode_request
from msgbus.message import Request
from tests.support import EVENT_TIMEOUT, new_transport

TARGET = Target(topic="foo")
TOPIC = Address("topic", "msgbus", "foo")
LOST = TransportUnavailable("cut", maybe_delivered=True)
NOBODY = MessageUndeliverable("nobody is there")


def numbered(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """So many requests, each with its number."""
    return (("take", {"value": n}) for n in range(count))


def noting(taken: list[int], count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """So many requests; the number of each is put into `taken` when it is asked for."""
    for n, request in enumerate(numbered(count)):
        taken.append(n)
        yield request


def requests_at(transport: Transport, address: Address = TOPIC) -> list[Request]:
    """The requests that arrive at an address from now on."""
    found: list[Request] = []

    def on_delivery(delivery: Delivery) -> None:
        delivery.accept()
        found.append(decode_request(delivery.message.body, delivery.message.content_type))

    transport.driver.subscribe([address], on_delivery, prefetch=1000)
    return found


def values(requests: list[Request]) -> list[Any]:
    """Their arguments."""
    return [request.args["value"] for request in requests]


class Held:
    """Stands in for `Driver.send`: the test says what becomes of each message, and when."""

    def __init__(self, transport: Transport) -> None:
        self.sent: list[Future[Sent]] = []
        self.messages: list[Message] = []
        transport.driver.send = self.send  # type: ignore[method-assign]

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        """As `Driver.send`."""
        future: Future[Sent] = Future()
        self.messages.append(message)
        self.sent.append(future)
        return future

    def await_sent(self, count: int) -> None:
        """Wait until so many messages were sent."""
        until(lambda: len(self.sent) >= count, f"{count} messages", EVENT_TIMEOUT)

    def confirm(self, *numbers: int) -> None:
        """Say that the message system has taken these."""
        for number in numbers:
            self.sent[number].set_result(Sent(1))


@pytest.fixture
def transport() -> Iterator[Transport]:
    """A transport whose window leaves four places to `cast_many`."""
    made = new_transport(rpc_send_window=8)
    yield made
    made.cleanup()


@pytest.fixture
def client(transport: Transport) -> RPCClient:
    """A client whose deadlines do not matter."""
    return get_rpc_client(transport, TARGET)


@pytest.fixture
def held(transport: Transport) -> Held:
    """The messages, which the message system does not confirm by itself."""
    return Held(transport)


def failure_of(task: Task) -> CastsFailed:
    """The error with which a `cast_many` ends."""
    error = task.error(EVENT_TIMEOUT)
    assert isinstance(error, CastsFailed), repr(error)
    return error


# All goes well


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@pytest.mark.parametrize("window", [1, 2, 3, 1000])
def test_all_are_sent_in_order(delivery: Any, window: int) -> None:
    """Each request arrives once, in order, with the context and a new id; their number is returned."""
    transport = new_transport(rpc_send_window=window)
    found = requests_at(transport)
    assert get_rpc_client(transport, TARGET, delivery=delivery).cast_many({"user": "u"}, numbered(50)) == 50
    assert values(found) == list(range(50))
    assert all(request.context == {"user": "u"} and request.call_id is None for request in found)
    assert len({request.unique_id for request in found}) == 50
    assert transport.window.idle
    transport.cleanup()


def test_each_request_names_its_method(transport: Transport, client: RPCClient) -> None:
    """Different methods may be cast, in one order; a pair may be a list, and the requests a list too."""
    found = requests_at(transport)
    assert client.cast_many(None, [("one", {}), ["two", {"x": 1}], ("one", {"ctxt": 2, "method": 3})]) == 3  # type: ignore[list-item]
    assert [(request.method, request.args) for request in found] == [
        ("one", {}),
        ("two", {"x": 1}),
        ("one", {"ctxt": 2, "method": 3}),
    ]


def test_no_requests(held: Held, client: RPCClient) -> None:
    """Nothing is sent for an empty iterable, and 0 returned."""
    assert client.cast_many({}, []) == 0
    assert client.cast_many({}, iter(())) == 0
    assert not held.sent


def test_it_returns_when_all_are_confirmed(held: Held, client: RPCClient, transport: Transport) -> None:
    """Not before: the last confirmation is waited for, in whatever order they come."""
    task = Task(client.cast_many, {}, numbered(3))
    held.await_sent(3)
    held.confirm(2, 0)
    assert not task.done
    held.confirm(1)
    assert task.result(EVENT_TIMEOUT) == 3
    assert transport.window.idle


def test_a_fanout_goes_to_all(transport: Transport, client: RPCClient) -> None:
    """With fanout in the target every server gets every request; that there is none is no error."""
    everyone = client.prepare(fanout=True)
    assert everyone.cast_many({}, numbered(2)) == 2
    found = [requests_at(transport, Address("fanout", "msgbus", "foo", name)) for name in ("h1", "h2")]
    assert everyone.cast_many({}, numbered(3)) == 3
    assert [values(each) for each in found] == [[0, 1, 2]] * 2


def test_a_topic_that_names_a_server(transport: Transport) -> None:
    """Where nobody listens to a topic with a dot, each request goes to the server that it names."""
    found = requests_at(transport, Address("server", "msgbus", "foo", "h1"))
    assert get_rpc_client(transport, Target(topic="foo.h1")).cast_many({}, numbered(10)) == 10
    assert values(found) == list(range(10))


def test_time_travels_where_it_was_given(held: Held, client: RPCClient) -> None:
    """A request expires only if the client has a timeout, as one of `cast` does; each has all of that time."""
    tasks = [Task(client.cast_many, {}, numbered(1)), Task(client.prepare(timeout=300).cast_many, {}, numbered(2))]
    held.await_sent(3)
    ttls = sorted((message.ttl or 0.0) for message in held.messages)
    assert ttls[0] == 0.0
    assert all(250 < ttl <= 300 for ttl in ttls[1:])
    held.confirm(0, 1, 2)
    assert [task.result(EVENT_TIMEOUT) for task in tasks] == [1, 2]


# The window


def test_half_of_the_window_is_left_to_others(held: Held, client: RPCClient, transport: Transport) -> None:
    """No more requests are on their way at a time, and no more are taken from the iterable meanwhile."""
    taken: list[int] = []
    task = Task(client.cast_many, {}, noting(taken, 20))
    for confirmed in range(0, 20, 2):
        held.await_sent(min(confirmed + 4, 20))
        assert len(taken) == len(held.sent) == min(confirmed + 4, 20)
        assert len(transport.window._places) >= 4
        held.confirm(confirmed, confirmed + 1)
    assert task.result(EVENT_TIMEOUT) == 20


def test_a_full_window_is_waited_for(held: Held, client: RPCClient, transport: Transport) -> None:
    """While others have all places, no request is sent; then all are."""
    for _ in range(8):
        assert transport.window.acquire(0)
    task = Task(client.cast_many, {}, numbered(2))
    until(lambda: len(transport.window._waiters) == 1, "it waits for a place", EVENT_TIMEOUT)
    assert not held.sent
    transport.window.release()
    held.await_sent(1)
    held.confirm(0)  # Its place is the next one's.
    held.await_sent(2)
    held.confirm(1)
    assert task.result(EVENT_TIMEOUT) == 2


def test_a_window_that_stays_full(held: Held, client: RPCClient, transport: Transport) -> None:
    """At the deadline of the request that waits for a place, the error says why, and that nothing was sent."""
    for _ in range(8):
        assert transport.window.acquire(0)
    failure = failure_of(Task(client.prepare(timeout=0.5).cast_many, {}, numbered(2)))
    assert isinstance(failure.error, MessagingTimeout)
    assert "rpc_send_window" in str(failure)
    assert (failure.index, failure.confirmed, failure.begun, failure.unknown) == (0, 0, 1, [])
    assert not held.sent


def test_memory_does_not_grow_with_the_number() -> None:
    """A generator is read as its requests are sent, and nothing is kept of those that were confirmed."""
    transport = new_transport(rpc_send_window=20)

    def on_delivery(delivery: Delivery) -> None:
        delivery.accept()

    transport.driver.subscribe([TOPIC], on_delivery, prefetch=1000)
    client = get_rpc_client(transport, TARGET)
    client.cast_many({}, numbered(500))
    tracemalloc.start()
    try:
        assert client.cast_many({}, (("take", {"value": "x" * 1000}) for _ in range(2000))) == 2000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000, "at 1,000 bytes for each request 2,000,000 would be all of them"
    transport.cleanup()


# Errors


def test_the_first_error_stops_it(held: Held, client: RPCClient, transport: Transport) -> None:
    """No request is sent after an error. All that are on their way are waited for, and the error tells of each."""
    taken: list[int] = []
    task = Task(client.cast_many, {}, noting(taken, 20))
    held.await_sent(4)
    held.sent[3].set_exception(NOBODY)
    held.sent[1].set_exception(LOST)
    held.confirm(0)
    assert not task.done
    held.confirm(2)
    failure = failure_of(task)
    assert taken == [0, 1, 2, 3]
    assert len(held.sent) == 4
    assert failure.index == 1
    assert isinstance(failure.error, OutcomeUnknown)
    assert failure.error is failure.__cause__ is failure.failed[1]
    assert type(failure.failed[3]) is MessageUndeliverable
    assert list(failure.failed) == [1, 3]
    assert failure.unknown == [1]
    assert failure.confirmed == 2
    assert failure.begun == 4
    assert "'take' on topic 'foo'" in str(failure)
    assert transport.window.idle


def test_an_error_with_hundreds_of_casts_has_a_short_text() -> None:
    """Logs show an exception as its text or its repr: neither tells of each cast."""
    failure = CastsFailed({number: OutcomeUnknown("cut " * 50) for number in range(7, 500)}, 1000)
    assert "cast number 7 failed: OutcomeUnknown: cut" in repr(failure)
    assert "none was sent from number 1000 on" in repr(failure)
    assert max(len(str(failure)), len(repr(failure))) < 1000


def test_nothing_is_sent_after_an_error_that_comes_while_the_iterable_is_slow(held: Held, client: RPCClient) -> None:
    """A request that the iterable gives after an error is not sent either."""
    went_on = threading.Event()

    def requests() -> Iterator[tuple[str, dict[str, Any]]]:
        yield "take", {}
        assert went_on.wait(EVENT_TIMEOUT)
        yield "take", {}

    task = Task(client.cast_many, {}, requests())
    held.await_sent(1)
    held.sent[0].set_exception(NOBODY)
    went_on.set()
    failure = failure_of(task)
    assert (failure.index, failure.begun, failure.confirmed) == (0, 1, 0)
    assert len(held.sent) == 1


def test_a_slow_iterable_keeps_no_places(held: Held, client: RPCClient, transport: Transport) -> None:
    """What is confirmed while the iterable is waited for makes room for others at once."""
    went_on = threading.Event()

    def requests() -> Iterator[tuple[str, dict[str, Any]]]:
        yield from numbered(3)
        assert went_on.wait(EVENT_TIMEOUT)

    task = Task(client.cast_many, {}, requests())
    held.await_sent(3)
    held.confirm(0, 1, 2)
    until(lambda: transport.window.idle, "all places are free", EVENT_TIMEOUT)
    went_on.set()
    assert task.result(EVENT_TIMEOUT) == 3


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("take", TypeError),
        (("take",), TypeError),
        (("take", 5), TypeError),
        (("take", {}, 1), TypeError),
        ((5, {}), TypeError),
        (None, TypeError),
        (("", {}), TypeError),
        (("take", {"value": object()}), SerializationError),
        (("take", {5: 5}), SerializationError),
        (("x" * 256, {}), SerializationError),
    ],
)
def test_a_request_that_is_none(transport: Transport, client: RPCClient, bad: Any, error: type[Exception]) -> None:
    """It is not sent, nor is anything after it; what was sent before is confirmed."""
    found = requests_at(transport)
    with pytest.raises(CastsFailed) as caught:
        client.cast_many({}, [*numbered(2), bad, *numbered(2)])
    assert type(caught.value.error) is error
    assert (caught.value.index, caught.value.confirmed, caught.value.unknown) == (2, 2, [])
    assert values(found) == [0, 1]
    assert transport.window.idle


def test_the_version_cap_holds(transport: Transport, client: RPCClient) -> None:
    """Requests above it are refused as by `cast`."""
    found = requests_at(transport)
    with pytest.raises(CastsFailed) as caught:
        client.prepare(version="2.0", version_cap="1.0").cast_many({}, numbered(2))
    assert isinstance(caught.value.error, RPCVersionCapError)
    assert not found


def test_nobody_is_there(client: RPCClient) -> None:
    """The first request says so."""
    with pytest.raises(CastsFailed) as caught:
        client.cast_many({}, numbered(10))
    assert isinstance(caught.value.error, MessageUndeliverable)
    assert (caught.value.index, caught.value.confirmed, caught.value.begun) == (0, 0, 1)


def test_at_least_once_sends_again(transport: Transport, client: RPCClient) -> None:
    """A request whose outcome is unknown is sent again, where the policy allows it."""
    found = requests_at(transport)
    get_bus(transport.url).fail_next(LOST, 2)
    assert client.prepare(delivery="at_least_once").cast_many({}, numbered(5)) == 5
    assert sorted(values(found)) == list(range(5))
    get_bus(transport.url).fail_next(LOST)
    with pytest.raises(CastsFailed) as caught:
        client.cast_many({}, numbered(5))
    assert isinstance(caught.value.error, OutcomeUnknown)
    assert caught.value.unknown == [0]


def test_an_iterable_that_raises(held: Held, client: RPCClient, transport: Transport) -> None:
    """Its exception is raised as it is, once the outcome of what was sent is known, and a note tells that."""

    def requests() -> Iterator[tuple[str, dict[str, Any]]]:
        yield from numbered(3)
        raise KeyError("mine")

    task = Task(client.cast_many, {}, requests())
    held.await_sent(3)
    held.confirm(0, 2)
    assert not task.done
    held.confirm(1)
    error = task.error(EVENT_TIMEOUT)
    assert type(error) is KeyError
    assert error.__notes__ == ["3 casts were confirmed before"]
    task = Task(client.cast_many, {}, requests())
    held.await_sent(6)
    held.confirm(3, 5)
    held.sent[4].set_exception(NOBODY)
    error = task.error(EVENT_TIMEOUT)
    assert type(error) is KeyError
    assert error.__notes__[0].startswith("cast number 1 failed: MessageUndeliverable: 'take' on topic 'foo' ")
    assert ": nobody is there. 2 casts were confirmed, 1 failed" in error.__notes__[0]
    assert transport.window.idle


def test_an_interrupted_iterable(held: Held, client: RPCClient, transport: Transport) -> None:
    """After Ctrl-C nothing is waited for; places in the window are free when the outcomes come."""

    def requests() -> Iterator[tuple[str, dict[str, Any]]]:
        yield from numbered(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.cast_many({}, requests())
    assert not transport.window.idle
    held.confirm(1)
    held.sent[0].set_exception(NOBODY)
    assert transport.window.idle


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_what_is_never_confirmed(
    held: Held, client: RPCClient, transport: Transport, delivery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the deadline its outcome is unknown, its place is free, and what is heard of it later changes nothing."""
    monkeypatch.setattr("msgbus.casts.INSPECT_TIMEOUT", 0.05)
    failure = failure_of(Task(client.prepare(timeout=0.5, delivery=delivery).cast_many, {}, numbered(20)))
    assert type(failure.error) is (OutcomeUnknown if delivery == "at_most_once" else TransportUnavailable)
    assert "did not confirm it by the deadline" in str(failure)
    assert (failure.confirmed, failure.begun, failure.unknown) == (0, 4, [0, 1, 2, 3])
    assert transport.window.idle
    held.confirm(0, 1)
    held.sent[2].set_exception(NOBODY)
    assert transport.window.idle
    assert failure.unknown == [0, 1, 2, 3]


def test_the_deadline_of_the_whole(transport: Transport, client: RPCClient) -> None:
    """With `prepare(deadline=...)` it ends in time, and the first request that was not sent says that."""
    found = requests_at(transport)

    def requests() -> Iterator[tuple[str, dict[str, Any]]]:
        for n in itertools.count():
            time.sleep(0.01)
            yield "take", {"value": n}

    failure = failure_of(Task(client.prepare(deadline=0.3).cast_many, {}, requests()))
    assert isinstance(failure.error, MessagingTimeout)
    assert "the deadline has already passed" in str(failure)
    assert failure.confirmed == failure.index == len(found)
    assert failure.begun == failure.index + 1
    assert not failure.unknown


def test_a_transport_that_is_closed_meanwhile(transport: Transport, client: RPCClient) -> None:
    """Requests that are on their way, and those that come, fail at once."""
    requests_at(transport)
    get_bus(transport.url).pause()
    task = Task(client.cast_many, {}, numbered(20))
    until(lambda: len(transport.window._places) == 4, "four are on their way", EVENT_TIMEOUT)
    transport.cleanup()
    failure = failure_of(task)
    assert {type(error) for error in failure.failed.values()} == {CallCancelled}
    assert failure.confirmed == 0
    with pytest.raises(CastsFailed) as caught:
        client.cast_many({}, numbered(3))
    assert isinstance(caught.value.error, CallCancelled)
    assert caught.value.begun == 1


def test_many_threads_at_once() -> None:
    """Threads that share a small window all get through."""
    transport = new_transport(rpc_send_window=3)
    found = requests_at(transport)
    client = get_rpc_client(transport, TARGET)
    tasks = [Task(client.cast_many, {}, numbered(200)) for _ in range(8)]
    assert [task.result(EVENT_TIMEOUT * 2) for task in tasks] == [200] * 8
    assert sorted(values(found)) == sorted([*range(200)] * 8)
    assert transport.window.idle
    transport.cleanup()
