from __future__ import annotations

import contextlib
import re
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import msgbus.base_client
import msgbus.client
from msgbus import (
    CallCancelled,
    InvalidTarget,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingTimeout,
    NoOpSerializer,
    NoSuchMethod,
    OutcomeUnknown,
    RemoteError,
    RPCClient,
    RPCVersionCapError,
    SerializationError,
    Target,
    Transport,
    TransportBlocked,
    TransportUnavailable,
    get_rpc_client,
    get_rpc_server,
)
from msgbus.conformance.waiting import Task, until
from msgbus.deadline import current
from msgbus.drivers.base import Address, Capability, Delivery, Message, QueueInfo, Sent
from msgbus.drivers.fake import Bus, FakeDriver, get_bus
from msgbus.encoding import decode_request, encode_reply
from msgbus.message import JSON, MSGPACK, Reply, Request
from tests.support import EVENT_TIMEOUT, new_transport

TARGET = Target(topic="foo")
LOST = TransportUnavailable("cut", maybe_delivered=True)


class Remote(Exception):
    """What is on no list of allowed modules."""


class Endpoint:
    """What the tests call."""

    def __init__(self) -> None:
        self.casts: list[Any] = []
        self.came = threading.Semaphore(0)
        self.closed = threading.Event()

    def echo(self, ctxt: object, value: Any = None) -> Any:
        return value

    def context(self, ctxt: object) -> Any:
        return ctxt

    def fail(self, ctxt: object, own: bool = False) -> None:
        raise Remote("own") if own else KeyError("key")

    def take(self, ctxt: object, value: Any) -> None:
        self.casts.append(value)
        self.came.release()

    def count(self, ctxt: object, to: int, fail: bool = False) -> Iterator[int]:
        try:
            yield from range(to)
            if fail:
                raise KeyError("midway")
        finally:
            self.closed.set()

    def left(self, ctxt: object) -> float:
        deadline = current.get()
        assert deadline is not None
        return deadline - time.monotonic()

    def stop_iteration(self, ctxt: object) -> None:
        raise StopIteration

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.came.acquire(timeout=EVENT_TIMEOUT)


@contextlib.contextmanager
def serving(transport: Transport, endpoint: object, server: str = "h1", **more: Any) -> Iterator[None]:
    """A server that serves an endpoint, and has nothing unfinished in the end."""
    rpc_server = get_rpc_server(transport, Target(topic="foo", server=server), [endpoint], **more)
    rpc_server.start(EVENT_TIMEOUT)
    yield
    assert rpc_server.wait(EVENT_TIMEOUT) == 0


@pytest.fixture(params=["json", "msgpack"])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    """A transport in memory, once with each codec."""
    transport = new_transport(rpc_codec=request.param)
    yield transport
    transport.cleanup()


@pytest.fixture
def quiet() -> Iterator[Transport]:
    """A transport at whose topic nobody answers, though requests are taken."""
    transport = new_transport()
    transport.driver.subscribe([Address("topic", "msgbus", "foo")], lambda _delivery: None, prefetch=1000)
    yield transport
    transport.cleanup()


@pytest.fixture
def bus(quiet: Transport) -> Bus:
    """The message system of `quiet`."""
    return get_bus(quiet.url)


@pytest.fixture
def endpoint() -> Endpoint:
    """The endpoint that `client` calls."""
    return Endpoint()


@pytest.fixture
def client(transport: Transport, endpoint: Endpoint) -> Iterator[RPCClient]:
    """A client of a server with `endpoint`."""
    with serving(transport, endpoint):
        yield get_rpc_client(transport, TARGET, timeout=EVENT_TIMEOUT)


def requests_of(transport: Transport, topic: str = "foo") -> list[Request]:
    """The requests that are sent to a topic from now on."""
    found: list[Request] = []

    def on_delivery(delivery: Delivery) -> None:
        delivery.accept()
        found.append(decode_request(delivery.message.body, delivery.message.content_type))

    transport.driver.subscribe([Address("topic", "msgbus", topic)], on_delivery, prefetch=1000)
    return found


# Calls


@pytest.mark.parametrize("value", [None, 0, "ä", [1, {"a": None}], 2.5, True])
def test_call(client: RPCClient, value: Any) -> None:
    """`call` returns what the method returned."""
    assert client.call({}, "echo", value=value) == value


def test_context(client: RPCClient) -> None:
    """The caller's context arrives; None is an empty one."""
    assert client.call({"user": "u", "nested": {"a": 1}}, "context") == {"user": "u", "nested": {"a": 1}}
    assert client.call(None, "context") == {}


def test_arguments_of_any_name(client: RPCClient) -> None:
    """An argument may be called like a parameter of `call`."""
    with pytest.raises(TypeError, match="method"):
        client.call({}, "echo", method=1, self=2)


def test_remote_exceptions(client: RPCClient) -> None:
    """A built-in exception comes as itself; one of a module that is not allowed as RemoteError."""
    with pytest.raises(KeyError, match="key"):
        client.call({}, "fail")
    with pytest.raises(RemoteError) as caught:
        client.call({}, "fail", own=True)
    assert (caught.value.exc_type, caught.value.value) == ("Remote", "own")


def test_remote_exceptions_that_are_allowed(endpoint: Endpoint) -> None:
    """An exception of a module on the transport's list comes as itself."""
    transport = new_transport(allowed_remote_exmods=[__name__])
    with serving(transport, endpoint), pytest.raises(Remote, match="own"):
        get_rpc_client(transport, TARGET).call({}, "fail", own=True)
    transport.cleanup()


def test_no_such_method(client: RPCClient) -> None:
    """What the dispatcher finds wrong is raised as the error that it is."""
    with pytest.raises(NoSuchMethod) as caught:
        client.call({}, "nothing")
    assert caught.value.method == "nothing"


def test_call_of_a_generator(client: RPCClient) -> None:
    """`call` of a generator method returns its last value; of an empty one None."""
    assert client.call({}, "count", to=3) == 2
    assert client.call({}, "count", to=0) is None


def test_a_request_to_nobody_is_undeliverable(transport: Transport) -> None:
    """A call or cast to a target that nobody ever listened at fails at once."""
    client = get_rpc_client(transport, TARGET, timeout=5.0)
    for verb in (client.call, client.cast):
        with pytest.raises(MessageUndeliverable, match="foo"):
            verb({}, "echo")


@pytest.mark.parametrize(("argument", "says"), [("value", "argument 'value'"), (None, "context key 'bad'")])
def test_what_cannot_travel(transport: Transport, argument: str | None, says: str) -> None:
    """An argument or context that cannot travel is named; nothing is sent, and no place in the window is lost."""
    found = requests_of(transport)
    client = get_rpc_client(transport, TARGET)
    ctxt, kwargs = ({}, {argument: object()}) if argument else ({"bad": object()}, {})
    for _ in range(3):
        for verb in (client.call, client.cast, client.multicall):
            with pytest.raises(SerializationError, match=says):
                verb(ctxt, "echo", **kwargs)
    assert not found
    assert not len(transport.router)
    assert len(transport.window._places) == transport.window.size


@pytest.mark.parametrize("method", [None, 5, b"echo"])
def test_a_method_is_a_name(transport: Transport, method: Any) -> None:
    """A method's name that is no string is refused before anything is sent."""
    with pytest.raises(SerializationError, match="a method's name is a string"):
        get_rpc_client(transport, TARGET).call({}, method)


# Casts


def test_cast(client: RPCClient, endpoint: Endpoint) -> None:
    """`cast` has the method run, and returns nothing."""
    assert client.cast({}, "take", value=5) is None  # type: ignore[func-returns-value]  # as is to be seen
    endpoint.wait()
    assert endpoint.casts == [5]


def test_fanout(transport: Transport) -> None:
    """`fanout_cast`, and `cast` with fanout in the target, reach every server; `cast` to a server that one only."""
    endpoints = {"h1": Endpoint(), "h2": Endpoint()}
    with contextlib.ExitStack() as stack:
        for server, endpoint in endpoints.items():
            stack.enter_context(serving(transport, endpoint, server))
        client = get_rpc_client(transport, TARGET)
        client.fanout_cast({}, "take", value=1)
        client.prepare(fanout=True).cast({}, "take", value=2)
        client.prepare(server="h2").cast({}, "take", value=3)
        endpoints["h1"].wait(2)
        endpoints["h2"].wait(3)
    assert sorted(endpoints["h1"].casts) == [1, 2]
    assert sorted(endpoints["h2"].casts) == [1, 2, 3]


def test_fanout_to_nobody(transport: Transport) -> None:
    """That nobody hears a fanout is no error."""
    get_rpc_client(transport, TARGET).fanout_cast({}, "take", value=1)


@pytest.mark.parametrize(
    ("delivery", "error", "raises"),
    [
        ("at_most_once", LOST, OutcomeUnknown),
        ("at_most_once", TransportUnavailable("away"), TransportUnavailable),
        ("at_most_once", TransportBlocked("full"), TransportBlocked),
        ("at_least_once", TransportUnavailable("away"), TransportUnavailable),
        ("at_least_once", LOST, None),
    ],
)
def test_casts_that_cannot_be_sent(
    quiet: Transport, bus: Bus, delivery: Any, error: Exception, raises: type[Exception] | None
) -> None:
    """A cast raises why it was not sent; where that is unknown, the policy says whether it is sent again."""
    bus.fail_next(error)
    client = get_rpc_client(quiet, TARGET, delivery=delivery)
    with pytest.raises(raises) if raises else contextlib.nullcontext():
        client.cast({}, "take", value=1)


def test_repeats_have_the_same_id() -> None:
    """What is sent again under at_least_once has the id that it had."""
    transport = new_transport()
    sent: list[str] = []
    send = transport.driver.send

    def keep(address: Address, message: Message, *, mandatory: bool) -> Any:
        sent.append(message.id)
        return send(address, message, mandatory=mandatory)

    transport.driver.send = keep  # type: ignore[method-assign]  # a spy
    found = requests_of(transport)
    get_bus(transport.url).fail_next(LOST, 2)
    get_rpc_client(transport, TARGET, delivery="at_least_once").cast({}, "take")
    assert len(sent) == 3
    assert sent == [found[0].unique_id] * 3
    transport.cleanup()


# Timeouts


def test_timeout_of_a_call_that_nobody_answers(quiet: Transport) -> None:
    """The text of a timeout says what is known: the method, the target, the time, the message system, its consumers."""
    with pytest.raises(MessagingTimeout) as caught:
        get_rpc_client(quiet, TARGET, timeout=0.5).call({}, "echo")
    text = str(caught.value)
    for part in (
        "'echo' on topic 'foo' (exchange 'msgbus')",
        "no answer within 0.5 s",
        "the in-memory message system",
        "the message system has taken the request",
        "no server said that it began",
        "consumers there: 1, 0 messages waiting",
    ):
        assert part in text


def test_a_call_that_its_monitor_ends_says_so(quiet: Transport) -> None:
    """The text names the time of the monitor, and not that of the call, which is not over."""
    client = get_rpc_client(quiet, TARGET, timeout=1000.0, call_monitor_timeout=0.5)
    with pytest.raises(MessagingTimeout, match=r"no sign of life of the server for 0\.5 s over .* consumers there: 1"):
        client.call({}, "echo")


def test_timeout_of_a_call_that_a_server_runs(transport: Transport, endpoint: Endpoint) -> None:
    """Where a server is known to run the call, the text names it and says when it was last heard of."""
    found = requests_of(transport)
    client = get_rpc_client(transport, TARGET)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            client.prepare(timeout=1.0).call({}, "echo")
        except MessagingTimeout as exc:
            errors.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    while not found:
        pass
    assert found[0].call_id is not None
    assert found[0].reply_to is not None
    content_type = {"json": JSON, "msgpack": MSGPACK}[transport.conf.rpc_codec]
    started = Reply(found[0].call_id, "started", extended=True, server="h7", inbox="somewhere")
    inbox = Address("inbox", name=found[0].reply_to)
    transport.send(inbox, Message(encode_reply(started, content_type), content_type, "id"), mandatory=True).result(0)
    thread.join(EVENT_TIMEOUT)
    assert "server 'h7' runs it, last sign of life" in str(errors[0])


def test_timeout_while_the_message_system_is_away(quiet: Transport, bus: Bus) -> None:
    """A request that could not be sent in time is TransportUnavailable, or a timeout that says so."""
    quiet.inbox(time.monotonic() + EVENT_TIMEOUT)
    bus.stop()
    client = get_rpc_client(quiet, TARGET, timeout=0.5)
    with pytest.raises((TransportUnavailable, MessagingTimeout)) as caught:
        client.call({}, "echo")
    assert "away" in str(caught.value) or "it is not known to be delivered" in str(caught.value)
    with pytest.raises(TransportUnavailable, match="away"):
        client.cast({}, "echo")


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_the_driver_gives_its_reason_before_the_call_times_out(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, delivery: Any
) -> None:
    """A request is given up by the driver, which knows why it could not be sent, before its caller gives up."""
    sent: list[Message] = []

    def take(_driver: FakeDriver, _address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        sent.append(message)
        return Future()

    transport.inbox(time.monotonic() + EVENT_TIMEOUT)
    monkeypatch.setattr(FakeDriver, "send", take)
    get_rpc_client(transport, TARGET, timeout=10.0, delivery=delivery).multicall({}, "count").close()
    assert sent[0].ttl == pytest.approx(10.0, abs=5.0)
    assert sent[0].publish_within is not None
    assert sent[0].publish_within <= 0.99 * (sent[0].ttl or 0.0)


@pytest.mark.parametrize(
    ("verb", "delivery", "durable"),
    [
        ("call", "at_most_once", False),
        ("call", "at_least_once", True),
        ("cast", "at_most_once", True),
        ("cast", "at_least_once", True),
        ("fanout_cast", "at_most_once", False),
        ("fanout_cast", "at_least_once", False),
    ],
)
def test_what_is_kept_on_disk(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, verb: str, delivery: Any, durable: bool
) -> None:
    """Casts are, and calls under at_least_once; nobody misses the rest more than what else a restart costs."""
    found = requests_of(transport)
    kept: list[bool] = []
    send = FakeDriver.send

    def note(driver: FakeDriver, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        kept.append(message.durable)
        return send(driver, address, message, mandatory=mandatory)

    monkeypatch.setattr(FakeDriver, "send", note)
    client = get_rpc_client(transport, TARGET, timeout=0.5, delivery=delivery)
    with contextlib.suppress(MessagingTimeout):
        getattr(client, verb)({}, "take")
    assert kept == [durable]
    assert len(found) <= 1


def test_a_full_window() -> None:
    """With as many unfinished requests as are allowed a further one waits, and times out without being sent."""
    transport = new_transport(rpc_send_window=1)
    found = requests_of(transport)
    client = get_rpc_client(transport, TARGET, timeout=0.5)
    stream = client.multicall({}, "count", to=1)
    with pytest.raises(MessagingTimeout, match=r"'echo' on topic 'foo' .*: 1 requests .* \(option rpc_send_window\)"):
        client.call({}, "echo")
    stream.close()
    client.cast({}, "take")
    assert [request.method for request in found] == ["count", "take"]
    transport.cleanup()


def test_time_that_was_spent_waiting_for_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """What travels with a request is the time that is left when it is sent, not when the call began."""
    transport = new_transport()
    transport.inbox(time.monotonic() + EVENT_TIMEOUT)
    found = requests_of(transport)
    passed = [0.0]
    later = types.SimpleNamespace(now=lambda: time.monotonic() + passed[0])
    for module in (msgbus.client, msgbus.base_client):
        monkeypatch.setattr(module, "Loop", later)
    acquire = transport.window.acquire

    def slow(timeout: float) -> bool:
        passed[0] += 100
        return acquire(timeout)

    monkeypatch.setattr(transport.window, "acquire", slow)
    client = get_rpc_client(transport, TARGET, timeout=300)
    client.cast({}, "take")
    client.multicall({}, "count").close()
    for request in found:
        assert request.hints is not None
        assert request.hints.ttl is not None
        assert 150 < request.hints.ttl <= 200
    assert len(found) == 2
    transport.cleanup()


def test_a_handler_inherits_the_deadline(client: RPCClient) -> None:
    """The time that is left to a call is what is left to its handler, and to the calls that this makes."""
    left = client.prepare(timeout=30).call({}, "left")
    assert 20 < left <= 30


def test_calls_of_a_handler_end_with_it(transport: Transport) -> None:
    """A call and a stream that a handler makes get no more time than is left to the handler, and say so."""
    found = requests_of(transport)
    client = get_rpc_client(transport, TARGET, timeout=5.0)
    token = current.set(time.monotonic() + 1.0)
    try:
        client.multicall({}, "count", to=1).close()
        with pytest.raises(MessagingTimeout):
            client.call({}, "echo")
        current.set(time.monotonic() - 0.001)
        for verb in (client.call, client.multicall):
            with pytest.raises(MessagingTimeout, match="nothing was sent"):
                verb({}, "echo")
    finally:
        current.reset(token)
    lefts = [request.hints.ttl or 99.0 for request in found if request.hints is not None]
    assert len(lefts) == 2
    assert all(left <= 1.0 for left in lefts)


def test_casts_of_a_handler_have_their_own_time(transport: Transport) -> None:
    """Nobody waits for what a cast does: it is sent however little time is left to the handler, and does not expire."""
    found = requests_of(transport)
    token = current.set(time.monotonic() - 1.0)
    try:
        get_rpc_client(transport, TARGET).cast({}, "take")
    finally:
        current.reset(token)
    assert [request.hints and request.hints.ttl for request in found] == [None]


def test_a_stream_inherits_the_deadline_of_its_whole(transport: Transport) -> None:
    """A multicall that a handler makes may last no longer than the handler itself, whatever it says of its own."""
    found = requests_of(transport)
    token = current.set(time.monotonic() + 50)
    try:
        client = get_rpc_client(transport, TARGET, timeout=EVENT_TIMEOUT)
        for asked in (client, client.prepare(deadline=1000), client.prepare(deadline=10)):
            asked.multicall({}, "count", to=1).close()
    finally:
        current.reset(token)
    ends = [request.hints.end for request in found if request.hints is not None]
    assert ends == [pytest.approx(50, abs=9), pytest.approx(50, abs=9), pytest.approx(10, abs=9)]


def test_cleanup_ends_what_waits(quiet: Transport) -> None:
    """Who waits for an answer when the transport is closed gets CallCancelled."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            get_rpc_client(quiet, TARGET).call({}, "echo")
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    while not len(quiet.router):
        pass
    quiet.cleanup()
    thread.join(EVENT_TIMEOUT)
    assert [type(error) for error in errors] == [CallCancelled]
    with pytest.raises(CallCancelled):
        get_rpc_client(quiet, TARGET).call({}, "echo")


@pytest.mark.parametrize("verb", ["call", "multicall"])
def test_cleanup_ends_what_waits_for_a_place_in_the_send_window(verb: str) -> None:
    """Also where the place is that of a stream that is not read any more: nothing else would give it back."""
    transport = new_transport(rpc_send_window=1)
    requests_of(transport)
    client = get_rpc_client(transport, TARGET, timeout=1000.0)
    stream = client.multicall({}, "count")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            getattr(client, verb)({}, "echo")
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: transport.window._waiters, "it waits for a place", EVENT_TIMEOUT)
    transport.cleanup()
    thread.join(EVENT_TIMEOUT)
    assert [type(error) for error in errors] == [CallCancelled]
    stream.close()


def test_too_large() -> None:
    """A request that is larger than the message system takes is refused."""
    transport = new_transport(f"{new_transport().url}?max_message_size=500")
    requests_of(transport)
    client = get_rpc_client(transport, TARGET)
    for verb in (client.call, client.cast):
        with pytest.raises(MessageTooLarge):
            verb({}, "echo", value="x" * 1000)
    transport.cleanup()


# Streams


def test_multicall(client: RPCClient, endpoint: Endpoint) -> None:
    """`multicall` yields what the generator yields, past its window; a plain method's value is one item."""
    assert list(client.multicall({}, "count", to=350)) == list(range(350))
    assert endpoint.closed.is_set()
    assert list(client.multicall({}, "echo", value=5)) == [5]
    assert list(client.multicall({}, "count", to=0)) == []


def test_multicall_that_fails_midway(client: RPCClient) -> None:
    """The generator's exception comes after the values before it; then the stream has ended."""
    stream = client.multicall({}, "count", to=2, fail=True)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(KeyError, match="midway"):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_multicall_that_is_closed(client: RPCClient, endpoint: Endpoint, how: str) -> None:
    """Closing or dropping the iterator runs the remote generator's `finally`, and frees its place in the window."""
    stream: Any = client.multicall({}, "count", to=10**9)
    assert next(stream) == 0
    if how == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif how == "with":
        with stream:
            pass
    else:
        del stream
    assert endpoint.closed.wait(EVENT_TIMEOUT)
    assert len(client.transport.window._places) == client.transport.window.size


def test_multicall_whose_method_raises_stop_iteration(client: RPCClient) -> None:
    """A method that raises StopIteration has failed: it does not look like a stream without items."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(client.multicall({}, "stop_iteration"))


def test_multicall_timeout_of_an_item(quiet: Transport) -> None:
    """`timeout` bounds the wait for an item, `deadline` the whole; either ends the stream."""
    client = get_rpc_client(quiet, TARGET)
    for prepared in (client.prepare(timeout=0.5), client.prepare(deadline=0.5)):
        stream = prepared.multicall({}, "count")
        with pytest.raises(MessagingTimeout):
            next(stream)
        assert list(stream) == []


def test_multicall_to_nobody(transport: Transport) -> None:
    """A stream to nobody fails where it is iterated over."""
    with pytest.raises(MessageUndeliverable):
        list(get_rpc_client(transport, TARGET).multicall({}, "count"))


# Versions, targets, preparing


@pytest.mark.parametrize(
    ("cap", "version", "allowed"),
    [
        (None, None, True),
        (None, "9.9", True),
        ("1.5", "1.5", True),
        ("1.5", "1.4", True),
        ("1.5", "1.6", False),
        ("1.5", "2.0", False),
        ("1.5", None, False),
    ],
)
def test_version_cap(transport: Transport, cap: str | None, version: str | None, allowed: bool) -> None:
    """A request above the cap is refused before it is sent, with both versions in the text."""
    found = requests_of(transport)
    client = get_rpc_client(transport, TARGET(version=version), version_cap=cap)
    assert client.can_send_version() is allowed
    assert get_rpc_client(transport, TARGET, version_cap=cap).can_send_version(version) is allowed
    if allowed:
        client.cast({}, "echo")
        assert found[0].version == version
        return
    for verb in (client.cast, client.call, client.multicall, client.fanout_cast):
        with pytest.raises(RPCVersionCapError, match=r"1\.5") as caught:
            verb({}, "echo")
        assert (caught.value.version, caught.value.version_cap) == (version, cap)
    assert not found


@pytest.mark.parametrize("options", [{"version_cap": "x"}, {"delivery": "exactly_once"}])
def test_wrong_settings(transport: Transport, options: dict[str, Any]) -> None:
    """An invalid version or policy is refused when the client is made or prepared."""
    with pytest.raises(ValueError, match=r"."):
        get_rpc_client(transport, TARGET, **options)
    with pytest.raises(ValueError, match=r"."):
        get_rpc_client(transport, TARGET).prepare(**options)
    with pytest.raises(ValueError, match=r"."):
        get_rpc_client(transport, Target(topic="foo", version="1.x"))


def test_a_client_needs_a_topic(transport: Transport) -> None:
    """A target without a topic is refused, when a client is made or prepared."""
    with pytest.raises(InvalidTarget, match="needs a topic"):
        get_rpc_client(transport, Target(server="h1"))
    client = get_rpc_client(transport, TARGET)
    with pytest.raises(InvalidTarget, match="needs a topic"):
        client.prepare(topic=None)
    with pytest.raises(InvalidTarget, match="must not be empty"):
        client.prepare(topic="")


@pytest.mark.parametrize("verb", ["call", "multicall"])
def test_no_answers_from_all(transport: Transport, verb: str) -> None:
    """A call to all servers at once is refused."""
    client = get_rpc_client(transport, TARGET).prepare(fanout=True)
    with pytest.raises(InvalidTarget, match="all servers"):
        getattr(client, verb)({}, "echo")


SETTINGS: dict[str, Any] = {
    "exchange": "x",
    "namespace": "n",
    "version": "1.2",
    "server": "h1",
    "fanout": True,
    "timeout": 5.0,
    "version_cap": "1.9",
    "call_monitor_timeout": 3.0,
    "delivery": "at_least_once",
    "deadline": 7.0,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_prepare(transport: Transport, name: str) -> None:
    """`prepare` changes what is given, None takes it back, and the client that it is called on stays as it was."""
    client = get_rpc_client(transport, TARGET)

    def setting(of: RPCClient) -> Any:
        return getattr(of.target, name) if hasattr(of.target, name) else getattr(of, name)

    prepared = client.prepare(**{name: SETTINGS[name]})
    assert setting(prepared) == SETTINGS[name]
    assert setting(prepared.prepare(topic="bar")) == SETTINGS[name]
    assert setting(prepared.prepare(**{name: None})) is None
    assert setting(client) is None


def test_prepare_changes_what_is_sent(transport: Transport) -> None:
    """A prepared client's casts have its namespace, version, policy and time; a reset one's have the defaults."""
    found = requests_of(transport)
    client = get_rpc_client(transport, TARGET)
    prepared = client.prepare(namespace="n", version="1.2", delivery="at_least_once", timeout=5)
    prepared.cast({}, "a")
    prepared.prepare(namespace=None, version=None, delivery=None, timeout=None).cast({}, "b")
    client.cast({}, "c")
    for request, namespace, version, policy, ttl in zip(
        found,
        ["n", None, None],
        ["1.2", None, None],
        ["at_least_once", "at_most_once", "at_most_once"],
        [5, None, None],
        strict=True,
    ):
        assert (request.namespace, request.version) == (namespace, version)
        assert request.hints is not None
        assert request.hints.policy == policy
        assert (request.hints.ttl is None) == (ttl is None)
        assert ttl is None or 1 < (request.hints.ttl or 0) <= ttl


def test_options_are_the_defaults() -> None:
    """Timeout, policy, codec and exchange are the configuration's where the client says nothing."""
    transport = new_transport(
        rpc_response_timeout=7, rpc_delivery="at_least_once", rpc_codec="msgpack", control_exchange="ours"
    )
    deliveries: list[Delivery] = []
    transport.driver.subscribe([Address("topic", "ours", "foo")], deliveries.append, prefetch=1)
    get_rpc_client(transport, TARGET).multicall({}, "echo").close()
    assert deliveries[0].message.content_type == MSGPACK
    request = decode_request(deliveries[0].message.body, MSGPACK)
    assert request.hints is not None
    assert request.hints.policy == "at_least_once"
    assert request.hints.ttl is not None
    assert 3 < request.hints.ttl <= 7
    transport.cleanup()


# Serializers and ping


class Shouting(NoOpSerializer):
    """Adds an exclamation mark on the way out, and a question mark on the way in; takes one class of contexts."""

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        return f"{entity}!"

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        return f"{entity}?"

    def serialize_context(self, ctxt: Any) -> dict[str, Any]:
        return {"user": ctxt.user}


CTXT = types.SimpleNamespace(user="u")


def test_serializer(transport: Transport, endpoint: Endpoint) -> None:
    """A serializer turns context and arguments into data, and results and items back."""
    with serving(transport, endpoint):
        client = get_rpc_client(transport, TARGET, serializer=Shouting())
        assert client.call(CTXT, "echo", value="x") == "x!?"
        assert client.call(CTXT, "context") == "{'user': 'u'}?"
        assert list(client.multicall(CTXT, "echo", value="x")) == ["x!?"]


def test_ping(transport: Transport, endpoint: Endpoint) -> None:
    """`ping` returns an answer of every server of the topic, or of the one that the target names."""
    with serving(transport, endpoint, "h1"), serving(transport, endpoint, "h2"):
        client = get_rpc_client(transport, TARGET)
        found = client.ping(EVENT_TIMEOUT)
        assert sorted(answer["server"] for answer in found) == ["h1", "h2"]
        assert all({"topic", "host", "pid", "version", "seconds"} <= set(answer) for answer in found)
        assert found.expected == 2
        named = client.prepare(server="h2").ping(EVENT_TIMEOUT)
        assert ([answer["server"] for answer in named], named.expected) == (["h2"], 1)


def test_ping_counts_the_servers_that_do_not_answer(
    transport: Transport, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who consumes from the topic and does not answer is counted; where the driver cannot count, nobody knows."""
    client = get_rpc_client(transport, TARGET)
    with serving(transport, endpoint, "h1"):
        silent = [Address("topic", "msgbus", "foo"), Address("fanout", "msgbus", "foo", "h2")]
        subscription = transport.driver.subscribe(silent, lambda _delivery: None, prefetch=10)
        found = client.ping(2.0)
        assert ([answer["server"] for answer in found], found.expected) == (["h1"], 2)
        monkeypatch.setattr(transport.driver, "capabilities", transport.driver.capabilities - {Capability.INSPECT})
        found = client.ping(2.0)
        assert ([answer["server"] for answer in found], found.expected) == (["h1"], None)
        subscription.close()


@pytest.mark.parametrize("options", [{"version_cap": "1.5"}, {"serializer": Shouting()}])
def test_ping_with_any_client(transport: Transport, endpoint: Endpoint, options: dict[str, Any]) -> None:
    """A version cap or a serializer is of no matter to a ping."""
    with serving(transport, endpoint):
        client = get_rpc_client(transport, TARGET, **options)
        assert [answer["server"] for answer in client.ping(EVENT_TIMEOUT)] == ["h1"]


def test_ping_of_nobody(transport: Transport) -> None:
    """A ping of a topic without servers finds none, and of a server that is not there says so."""
    client = get_rpc_client(transport, TARGET)
    assert client.ping(0.5) == []
    with pytest.raises(MessageUndeliverable):
        client.prepare(server="h1").ping(EVENT_TIMEOUT)


def test_ping_of_one_that_is_silent() -> None:
    """A server that does not answer is left out after the timeout."""
    transport = new_transport()
    transport.driver.subscribe([Address("fanout", "msgbus", "foo", "h1")], lambda _delivery: None, prefetch=10)
    assert get_rpc_client(transport, TARGET).ping(0.5) == []
    transport.cleanup()


def test_a_target_of_another_type_is_refused() -> None:
    """A topic alone is no target: the error says how to write it."""
    topic: Any = "weather"
    with pytest.raises(TypeError, match=r"Target\(topic='weather'\)"):
        get_rpc_client(new_transport(), topic)


# The first try may have run, and nobody has been there since


VERBS = pytest.mark.parametrize("verb", ["call", "cast", "multicall"])


def use(client: RPCClient, verb: str) -> Any:
    """Run `note` by one of the verbs, to its end."""
    outcome = getattr(client, verb)({}, "note", text="x")
    return list(outcome) if verb == "multicall" else outcome


@VERBS
def test_nobody_there_after_an_unknown_outcome_is_an_error_at_the_deadline(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under at_least_once the error is not that nobody listens: the first try may have run, and the text says so."""
    # A busy machine needs more than the usual share to say so.
    monkeypatch.setattr(msgbus.base_client, "SEND_SHARE", 0.4)
    transport = new_transport()
    client = get_rpc_client(transport, Target(topic="foo"), timeout=2.0, delivery="at_least_once")
    get_bus(transport.url).fail_next(TransportUnavailable("the server was lost", maybe_delivered=True))
    began = time.monotonic()
    with pytest.raises(TransportUnavailable, match=r"may have run.*the server was lost.*nobody listens") as raised:
        use(client, verb)
    assert raised.value.maybe_delivered
    assert time.monotonic() - began >= 0.5, "it is tried until its deadline"
    transport.cleanup()


@VERBS
def test_a_server_that_comes_back_before_the_deadline_gets_the_request(verb: str) -> None:
    """After an unknown outcome and nobody there, the request is run by the server that comes."""
    transport = new_transport()
    client = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT, delivery="at_least_once")
    bus = get_bus(transport.url)
    bus.fail_next(TransportUnavailable("the server was lost", maybe_delivered=True))
    send_once = bus.send
    tried = threading.Semaphore(0)

    def send(*args: Any) -> None:
        send_once(*args)
        tried.release()

    bus.send = send  # type: ignore[assignment, method-assign]
    task = Task(use, client, verb)
    for _ in range(2):
        assert tried.acquire(timeout=EVENT_TIMEOUT)
    assert not task.done
    ran = threading.Event()

    class Endpoint:
        def note(self, _ctxt: Any, text: str) -> str:
            ran.set()
            return text

    server = get_rpc_server(transport, Target(topic="foo", server="s1"), [Endpoint()])
    server.start()
    assert task.result() == {"call": "x", "cast": None, "multicall": ["x"]}[verb]
    assert ran.wait(EVENT_TIMEOUT)
    server.stop()
    server.wait(EVENT_TIMEOUT)
    transport.cleanup()


# A topic that names a server


class Named:
    """Says who runs it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: list[str] = []

    def note(self, _ctxt: Any, text: str) -> str:
        self.runs.append(text)
        return self.name


@contextlib.contextmanager
def named(transport: Transport, topic: str, server: str) -> Iterator[Named]:
    """A server, while the block runs."""
    endpoint = Named(f"{server} of {topic}")
    made = get_rpc_server(transport, Target(topic=topic, server=server), [endpoint])
    made.start()
    try:
        yield endpoint
    finally:
        made.stop()
        made.wait(EVENT_TIMEOUT)


DELIVERIES = pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])


@VERBS
@DELIVERIES
def test_a_topic_may_name_a_server(verb: str, delivery: Any) -> None:
    """Where nobody has the topic, what stands after its first dot is the server; others get nothing of it."""
    transport = new_transport()
    client = get_rpc_client(transport, Target(topic="foo.s1.example.org"), timeout=EVENT_TIMEOUT, delivery=delivery)
    with named(transport, "foo", "s1.example.org") as meant, named(transport, "foo", "s1") as other:
        assert use(client, verb) in ("s1.example.org of foo", None, ["s1.example.org of foo"])
        until(lambda: meant.runs == ["x"], "it ran once")
        assert other.runs == []
    transport.cleanup()


@DELIVERIES
def test_a_topic_with_a_dot_is_itself_first(delivery: Any) -> None:
    """Where somebody has the topic, or it is stored, no server of another topic gets what is sent to it."""
    transport = new_transport()
    client = get_rpc_client(transport, Target(topic="foo.s1"), timeout=EVENT_TIMEOUT, delivery=delivery)
    with named(transport, "foo", "s1") as other:
        with named(transport, "foo.s1", "own") as own:
            assert client.call({}, "note", text="a") == "own of foo.s1"
        client.cast({}, "note", text="b")  # It waits for the next of that topic.
        with named(transport, "foo.s1", "next") as later:
            until(lambda: later.runs == ["b"], "it ran")
        assert (own.runs, other.runs) == (["a"], [])
    transport.cleanup()


@pytest.mark.parametrize("topic", ["foo.s9", "foo.", ".s1", "foo..s1", "s1"])
def test_a_topic_that_names_no_server_is_undeliverable(topic: str) -> None:
    """At once, and the text says what was looked for."""
    transport = new_transport()
    client = get_rpc_client(transport, Target(topic=topic), timeout=EVENT_TIMEOUT)
    with named(transport, "foo", "s1") as other:
        with pytest.raises(MessageUndeliverable, match=re.escape(f"topic {topic!r}")):
            client.call({}, "note", text="a")
        client.fanout_cast({}, "note", text="b")
        assert other.runs == []
    transport.cleanup()


def test_a_timeout_at_a_topic_that_names_a_server_names_it() -> None:
    """The consumers that it counts are those of the server, not of a topic that nobody has."""
    transport = new_transport()
    with named(transport, "foo", "s1"):
        address = transport.address(Target(topic="foo.s1"))
        assert transport.inspect(address, EVENT_TIMEOUT) == QueueInfo(1, 0)
        assert transport.inspect(address._replace(topic="foo.s2"), EVENT_TIMEOUT) == QueueInfo(0, 0)
    transport.cleanup()
