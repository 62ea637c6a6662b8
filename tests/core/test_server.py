from __future__ import annotations

import logging
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import msgbus.failed_casts
import msgbus.server_call
import msgbus.server_calls
from msgbus import (
    CallCancelled,
    DeadLetter,
    ExplicitRPCAccessPolicy,
    InvalidTarget,
    MessageUndeliverable,
    MessagingException,
    MessagingTimeout,
    NoSuchMethod,
    RemoteError,
    RPCClient,
    RPCServer,
    Target,
    Transport,
    TransportBlocked,
    TransportUnavailable,
    UnsupportedVersion,
    expected_exceptions,
    expose,
    get_rpc_client,
    get_rpc_server,
)
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Delivery, Message, Sent
from msgbus.drivers.fake import Bus, FakeDriver, get_bus
from msgbus.drivers.fake.bus import FakeDelivery
from msgbus.drivers.toolkit.futures import fail
from msgbus.encoding import decode_dead_letter, encode_request
from msgbus.message import JSON, Hints, Request
from tests.support import EVENT_TIMEOUT, new_transport

TOPIC = Address("topic", "msgbus", "foo")
DEAD = Address("dead", "msgbus", "foo")
LOST = TransportUnavailable("cut", maybe_delivered=True)


class Endpoint:
    """What the tests call."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.began = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.failures = 0
        self.hook: Callable[[], object] = lambda: None

    def note(self, ctxt: object, value: Any = None) -> Any:
        self.ran.append(value)
        self.began.release()
        return value

    def hold(self, ctxt: object, value: Any = None) -> Any:
        self.note(ctxt, value)
        assert self.go_on.wait(EVENT_TIMEOUT)
        return value

    def fail(self, ctxt: object, times: int = 10**9) -> None:
        self.note(ctxt)
        self.failures += 1
        if self.failures <= times:
            raise RuntimeError(f"failure {self.failures}")

    def exit(self, ctxt: object) -> None:
        self.note(ctxt)
        raise SystemExit(3)

    @expected_exceptions(LookupError)
    def expects(self, ctxt: object) -> None:
        self.note(ctxt)
        raise KeyError("expected")

    def call_hook(self, ctxt: object) -> None:
        self.note(ctxt)
        self.hook()

    def unserializable(self, ctxt: object) -> object:
        return object()

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.began.acquire(timeout=EVENT_TIMEOUT)


PAUSES = msgbus.failed_casts.RETRY_DELAYS


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    """A transport in memory, on which casts are run again without much delay."""
    monkeypatch.setattr(msgbus.failed_casts, "RETRY_DELAYS", (0.001,))
    transport = new_transport()
    yield transport
    transport.cleanup()


@pytest.fixture
def bus(transport: Transport) -> Bus:
    """Its message system."""
    return get_bus(transport.url)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """What the server runs."""
    endpoint = Endpoint()
    yield endpoint
    endpoint.go_on.set()


@pytest.fixture
def letters() -> list[DeadLetter]:
    """What the server's hook was given."""
    return []


@pytest.fixture
def server(transport: Transport, endpoint: Endpoint, letters: list[DeadLetter]) -> Iterator[RPCServer]:
    """A server that is not started yet; in the end it has nothing unfinished."""
    server = new_server(transport, endpoint, on_dead_letter=letters.append)
    yield server
    endpoint.go_on.set()
    assert server.wait(EVENT_TIMEOUT) == 0


@pytest.fixture
def client(transport: Transport) -> RPCClient:
    """A client of the server's topic."""
    return get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)


def new_server(transport: Transport, endpoint: object, name: str = "h1", **more: Any) -> RPCServer:
    """A server of the topic that all these tests use."""
    return get_rpc_server(transport, Target(topic="foo", server=name), [endpoint], **more)


def call_in_thread(client: RPCClient, method: str, **kwargs: Any) -> Future[Any]:
    """Call from another thread."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(client.call({}, method, **kwargs))
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=call, daemon=True).start()
    return future


def dead_letters_of(transport: Transport, count: int = 1) -> list[DeadLetter]:
    """The dead letters of the topic."""
    found: list[DeadLetter] = []
    came = threading.Semaphore(0)

    def on_delivery(delivery: Delivery) -> None:
        delivery.accept()
        found.append(decode_dead_letter(delivery.message.body))
        came.release()

    subscription = transport.driver.subscribe([DEAD], on_delivery, prefetch=10)
    for _ in range(count):
        assert came.acquire(timeout=EVENT_TIMEOUT)
    subscription.close()
    return found


def depth(transport: Transport, address: Address = TOPIC) -> int | None:
    """How many messages wait at an address; None where it does not exist."""
    found = transport.inspect(address, 1.0)
    return None if found is None else found.messages


def raw(transport: Transport, body: bytes, content_type: str = JSON, address: Address = TOPIC, **more: Any) -> None:
    """Send any bytes to the server."""
    transport.send(address, Message(body, content_type, "raw", **more), mandatory=True).result(0)


# Start, stop, wait


@pytest.mark.parametrize("target", [Target(), Target(topic="foo"), Target(server="h1")])
def test_a_server_needs_topic_and_name(transport: Transport, target: Target) -> None:
    """A server's target has a topic and a server, or is refused."""
    with pytest.raises(InvalidTarget, match="needs a topic and a server"):
        get_rpc_server(transport, target, [])


def test_executors(transport: Transport) -> None:
    """There is one executor, whose name oslo.messaging's callers may give."""
    get_rpc_server(transport, Target(topic="foo", server="h1"), [], executor="threading")
    with pytest.raises(ValueError, match="there is no executor 'eventlet'"):
        get_rpc_server(transport, Target(topic="foo", server="h1"), [], executor="eventlet")


def test_start_is_ready_when_it_returns(server: RPCServer, client: RPCClient) -> None:
    """What is sent after `start` has returned is served: to any, to this one, and to all."""
    server.start()
    assert client.call({}, "note", value=1) == 1
    assert client.prepare(server="h1").call({}, "note", value=2) == 2
    client.fanout_cast({}, "note", value=3)


def test_start_twice(server: RPCServer, client: RPCClient, transport: Transport, endpoint: Endpoint) -> None:
    """A second `start` of a server that runs does nothing: there is no second subscription."""
    server.start()
    server.start()
    found = transport.inspect(TOPIC, 1.0)
    assert found is not None
    assert found.consumers == 1
    client.fanout_cast({}, "note", value=1)
    endpoint.wait()
    server.wait(EVENT_TIMEOUT)
    assert endpoint.ran == [1]


def test_start_from_several_threads(server: RPCServer, transport: Transport) -> None:
    """However many threads start a server at the same time, it is started once, and all return when it is."""
    together = threading.Barrier(4, timeout=EVENT_TIMEOUT)

    def start() -> None:
        together.wait()
        server.start()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(EVENT_TIMEOUT)
    found = transport.inspect(TOPIC, 1.0)
    assert found is not None
    assert found.consumers == 1


def test_stop_and_wait_before_start(server: RPCServer) -> None:
    """A server that was never started has nothing to stop or to wait for."""
    server.stop()
    assert server.wait() == 0
    server.reset()


def test_stop_and_wait_again(server: RPCServer, client: RPCClient, endpoint: Endpoint) -> None:
    """`stop` and `wait` may be called any number of times."""
    server.start()
    client.call({}, "note")
    server.stop()
    server.stop()
    assert server.wait() == 0
    assert server.wait() == 0
    server.stop()


def test_a_server_can_be_started_again(server: RPCServer, client: RPCClient) -> None:
    """After `wait` a server can be started again, and serves the requests that arrived in between."""
    for number in range(3):
        server.start()
        assert client.call({}, "note", value=number) == number
        assert server.wait(EVENT_TIMEOUT) == 0
        client.cast({}, "note", value="between")
    server.start()
    assert client.call({}, "note") is None


def test_a_server_that_was_stopped_is_not_started_before_it_was_waited_for(
    server: RPCServer, client: RPCClient
) -> None:
    """It serves nothing meanwhile, so `start` must not return as if it did. The error says what to do."""
    server.start()
    server.stop()
    with pytest.raises(MessagingException, match=r"was stopped: call wait\(\) before start\(\)"):
        server.start()
    assert server.wait(EVENT_TIMEOUT) == 0
    server.start()
    assert client.call({}, "note", value=1) == 1


def test_stop_takes_no_new_requests(
    server: RPCServer, client: RPCClient, endpoint: Endpoint, transport: Transport
) -> None:
    """After `stop` new requests wait in the message system for another server; running ones go on and are answered."""
    server.start()
    running = call_in_thread(client, "hold", value=1)
    endpoint.wait()
    server.stop()
    client.cast({}, "note", value=2)
    assert depth(transport) == 1
    endpoint.go_on.set()
    assert running.result(EVENT_TIMEOUT) == 1
    assert server.wait(EVENT_TIMEOUT) == 0
    assert endpoint.ran == [1]


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_stop_gives_back_what_has_not_begun(delivery: Any, endpoint: Endpoint) -> None:
    """What a server holds and has not begun goes to another server when it stops, and is run there, once."""
    transport = new_transport(executor_thread_pool_size=1)
    server, other_endpoint = new_server(transport, endpoint), Endpoint()
    server.start()
    client = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT, delivery=delivery)
    running = call_in_thread(client, "hold", value=0)
    endpoint.wait()
    waiting = [call_in_thread(client, "note", value=value) for value in (1, 2)]
    client.cast({}, "note", value=3)
    found = transport.inspect(TOPIC, 1.0)
    executor: Any = server._executor
    while len(executor._backlog) < 3:
        pass
    assert found is not None
    server.stop()
    other = new_server(transport, other_endpoint, "h2")
    other.start()
    assert sorted(future.result(EVENT_TIMEOUT) for future in waiting) == [1, 2]
    other_endpoint.wait(3)
    endpoint.go_on.set()
    assert running.result(EVENT_TIMEOUT) == 0
    assert server.wait(EVENT_TIMEOUT) == 0
    assert other.wait(EVENT_TIMEOUT) == 0
    assert endpoint.ran == [0]
    assert sorted(other_endpoint.ran) == [1, 2, 3]
    transport.cleanup()


@pytest.mark.parametrize("executor", ["threading", "asyncio"])
def test_what_has_not_begun_and_no_other_server_can_take(endpoint: Endpoint, executor: str) -> None:
    """Under at_most_once it ends there, and says so: given back, it would look like what may have run."""
    transport = new_transport(executor_thread_pool_size=1, executor_tasks=1)
    letters: list[DeadLetter] = []
    target = Target(topic="foo", server="h1")
    server = get_rpc_server(transport, target, [endpoint], executor=executor, on_dead_letter=letters.append)
    server.start()
    client = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    client.cast({}, "hold", value=0)
    endpoint.wait()
    waiting = call_in_thread(client, "note", value=1)
    workers: Any = server._executor
    until(lambda: workers.load.backlog == 1, "the call is here", EVENT_TIMEOUT)
    client.cast({}, "note", value=2)
    client.prepare(delivery="at_least_once").cast({}, "note", value=3)
    until(lambda: workers.load.backlog == 3, "the casts are here", EVENT_TIMEOUT)
    get_bus(transport.url).fail_next(MessageUndeliverable("nobody listens"), 3)
    server.stop()
    with pytest.raises(CallCancelled, match="stopped before it began, and no other server could take it: nobody lis"):
        waiting.result(EVENT_TIMEOUT)
    endpoint.go_on.set()
    assert server.wait(EVENT_TIMEOUT) == 0
    assert endpoint.ran == [0]
    assert ["no other server could take it" in letter.reason for letter in letters] == [True]
    other = new_server(transport, endpoint)  # Under at_least_once the cast has waited for it.
    other.start()
    endpoint.wait()
    assert endpoint.ran == [0, 3]
    assert other.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


def test_ctrl_c_while_a_server_stops(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has not begun goes to another server all the same: the message system may take seconds to confirm."""
    transport = new_transport(executor_thread_pool_size=1)
    server, other_endpoint = new_server(transport, endpoint), Endpoint()
    server.start()
    client = get_rpc_client(transport, Target(topic="foo"))
    client.cast({}, "hold", value=0)
    endpoint.wait()
    client.cast({}, "note", value=1)
    executor: Any = server._executor
    until(lambda: executor._backlog, "the second cast is here", EVENT_TIMEOUT)
    subscription: Any = server._subscription
    stop = subscription.stop

    def interrupted() -> Future[None]:
        stopped: Future[None] = stop()
        signal.raise_signal(signal.SIGINT)
        return stopped

    monkeypatch.setattr(subscription, "stop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    endpoint.go_on.set()
    assert server.wait(EVENT_TIMEOUT) == 0
    assert endpoint.ran == [0]
    other = new_server(transport, other_endpoint, "h2")
    other.start()
    other_endpoint.wait()
    assert other_endpoint.ran == [1]
    assert other.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


def test_a_cast_that_is_due_again_while_its_server_stops_is_not_lost(
    transport: Transport, server: RPCServer, client: RPCClient, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While messages still come, it is run again here: a copy for others could come back, and be dropped."""
    server.start()
    subscription = server._subscription
    assert subscription is not None
    stop, stopping, stopped = subscription.stop, threading.Event(), Future[None]()

    def stop_slowly() -> Future[None]:
        stopping.set()
        return stopped

    def fail_once() -> None:
        assert stopping.wait(EVENT_TIMEOUT)
        if len(endpoint.ran) == 1:
            raise RuntimeError("the first time")

    def confirm_late(address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        send(address, message, mandatory=mandatory)
        sent: Future[Sent] = Future()
        transport.loop.call_later(0.2, lambda: sent.set_result(Sent()))
        return sent

    monkeypatch.setattr(subscription, "stop", stop_slowly)
    endpoint.hook = fail_once
    client.prepare(delivery="at_least_once").cast({}, "call_hook")
    endpoint.wait()
    send = transport.driver.send
    monkeypatch.setattr(transport.driver, "send", confirm_late)
    thread = threading.Thread(target=server.stop, daemon=True)
    thread.start()
    endpoint.wait()
    stop().result(EVENT_TIMEOUT)
    stopped.set_result(None)
    thread.join(EVENT_TIMEOUT)
    assert len(endpoint.ran) == 2


@pytest.mark.parametrize("error", [None, TransportBlocked("full")], ids=["taken", "not taken"])
def test_wait_waits_for_what_is_given_back(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """What has not begun is let go of when the message system has its copy, which has no more time than was left.

    Where it does not take the copy, it gets the message itself back.
    """
    transport = new_transport(executor_thread_pool_size=1)
    server = new_server(transport, endpoint)
    server.start()
    client = get_rpc_client(transport, Target(topic="foo"), timeout=1000.0)
    for value in range(2):
        client.cast({}, "hold", value=value)
    endpoint.wait()
    executor: Any = server._executor
    until(lambda: executor._backlog, "the second cast is here", EVENT_TIMEOUT)
    passed, copies, taken = 100.0, list[tuple[Message, bool]](), Future[Sent]()
    monkeypatch.setattr(msgbus.server_call, "Loop", types.SimpleNamespace(now=lambda: time.monotonic() + passed))

    def take(_driver: FakeDriver, _address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        copies.append((message, mandatory))
        return taken

    monkeypatch.setattr(FakeDriver, "send", take)
    server.stop()
    monkeypatch.undo()
    endpoint.go_on.set()
    assert server.wait(0.1) == 1
    ((copy, mandatory),) = copies
    assert (copy.durable, mandatory) == (True, True)
    assert copy.ttl == pytest.approx(900.0, abs=50.0)
    outcomes: list[str] = []
    for name in ("accept", "reject"):
        monkeypatch.setattr(FakeDelivery, name, lambda _self, *_args, name=name, **_kwargs: outcomes.append(name))
    if error is None:
        taken.set_result(Sent())
    else:
        taken.set_exception(error)
    assert outcomes == ["accept" if error is None else "reject"]
    monkeypatch.undo()
    transport.cleanup()
    assert endpoint.ran == [0]


def test_wait_reports_what_it_abandons(
    transport: Transport, client: RPCClient, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """`wait` with a time limit says how many requests were still running then."""
    server = new_server(transport, endpoint)
    server.start()
    running = [call_in_thread(client, "hold", value=value) for value in (1, 2)]
    endpoint.wait(2)
    assert server.wait(0.01) == 2
    assert "2 requests were abandoned" in caplog.text
    endpoint.go_on.set()
    assert [future.result(EVENT_TIMEOUT) for future in running] == [1, 2]


def test_a_handler_may_stop_its_server(server: RPCServer, client: RPCClient, endpoint: Endpoint) -> None:
    """A method may call `stop`, even while another thread is in `wait`, and is still answered."""
    waiting = threading.Event()

    def stop() -> None:
        assert waiting.wait(EVENT_TIMEOUT)
        server.stop()

    endpoint.hook = stop
    server.start()
    running = call_in_thread(client, "call_hook")
    endpoint.wait()
    left: list[int] = []
    waiter = threading.Thread(target=lambda: left.append(server.wait()), daemon=True)
    waiter.start()
    while not server._stopping:
        pass
    executor: Any = server._executor
    while executor is not None and not executor._closed:
        pass
    waiting.set()
    assert running.result(EVENT_TIMEOUT) is None
    waiter.join(EVENT_TIMEOUT)
    assert left == [0]


class Refusing:
    """Makes subscriptions fail, or never become ready."""

    def __init__(self, transport: Transport, error: Exception | None) -> None:
        self.subscribe = transport.driver.subscribe
        self.error = error
        self.subscriptions: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        subscription = self.subscribe(*args, **kwargs)
        self.subscriptions.append(subscription)
        subscription.ready = Future()
        if self.error is not None:
            subscription.ready.set_exception(self.error)
        return subscription


@pytest.mark.parametrize(
    ("error", "raises"), [(MessagingException("no rights"), MessagingException), (None, TransportUnavailable)]
)
def test_start_that_fails(
    transport: Transport,
    server: RPCServer,
    client: RPCClient,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    raises: type[Exception],
) -> None:
    """`start` raises what the message system says, or that it said nothing in time; then it can be tried again."""
    with monkeypatch.context() as patch:
        patch.setattr(transport.driver, "subscribe", Refusing(transport, error))
        with pytest.raises(raises) as caught:
            server.start(timeout=0.5)
    assert error is None or caught.value is error
    found = transport.inspect(TOPIC, 1.0)
    assert found is not None
    assert found.consumers == 0
    server.start()
    assert client.call({}, "note", value=1) == 1


def test_stop_ends_a_start_that_waits(
    transport: Transport, server: RPCServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`start` raises at once, and not when its time is over; then the server can be started again."""
    raised: list[BaseException] = []

    def start() -> None:
        try:
            server.start(timeout=1000.0)
        except BaseException as exc:
            raised.append(exc)

    with monkeypatch.context() as patch:
        refusing = Refusing(transport, None)
        patch.setattr(transport.driver, "subscribe", refusing)
        thread = threading.Thread(target=start, daemon=True)
        thread.start()
        until(lambda: refusing.subscriptions, "it has subscribed", EVENT_TIMEOUT)
        (subscription,) = refusing.subscriptions
        close = subscription.close

        def closed() -> Any:  # As the contract says.
            fail(subscription.ready, CallCancelled("it was closed"))
            return close()

        patch.setattr(subscription, "close", closed)
        until(lambda: server._subscription is not None, "it waits", EVENT_TIMEOUT)
        server.stop()
        thread.join(EVENT_TIMEOUT)
    assert [type(error) for error in raised] == [CallCancelled]
    assert server.wait(0) == 0
    server.start()
    assert client.call({}, "note", value=1) == 1


def test_a_server_that_is_stopped_before_it_listens_never_does(
    transport: Transport, server: RPCServer, client: RPCClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While `start` waits for the message system another thread stops it: it does not serve when that comes."""

    def stopped_meanwhile(deadline: float, whose: object) -> str:
        server.stop()
        monkeypatch.undo()
        return transport.inbox(deadline, whose)

    monkeypatch.setattr(transport, "inbox", stopped_meanwhile)
    with pytest.raises(CallCancelled, match="was stopped before it was started"):
        server.start()
    assert "not serving" in repr(server)
    server.start()
    assert client.call({}, "note", value=1) == 1


# What runs and what does not


def test_an_answer_that_cannot_travel(server: RPCServer, client: RPCClient) -> None:
    """A result that cannot be written is an error for the caller, at once, and names the method."""
    server.start()
    with pytest.raises(MessagingException, match="the result of 'unserializable'"):
        client.call({}, "unserializable")


@pytest.mark.parametrize("verb", ["call", "multicall", "cast"])
def test_a_handler_that_exits(server: RPCServer, client: RPCClient, endpoint: Endpoint, verb: str) -> None:
    """SystemExit of a method is an error: the caller gets it, and the server goes on, and can be waited for."""
    server.start()
    if verb == "cast":
        client.cast({}, "exit")
        endpoint.wait()
    else:
        with pytest.raises(RemoteError) as caught:
            list(client.multicall({}, "exit")) if verb == "multicall" else client.call({}, "exit")
        assert caught.value.exc_type == "SystemExit"
    assert client.call({}, "note", value=1) == 1


@pytest.mark.parametrize(("method", "level"), [("expects", logging.DEBUG), ("fail", logging.ERROR)])
def test_expected_exceptions_are_not_logged_as_errors(
    server: RPCServer, client: RPCClient, caplog: pytest.LogCaptureFixture, method: str, level: int
) -> None:
    """An expected exception goes to the caller and is logged at debug level; another one is logged as an error."""
    server.start()
    with caplog.at_level(logging.DEBUG, "msgbus"), pytest.raises((KeyError, RuntimeError)):
        client.call({}, method)
    raised = [record for record in caplog.records if record.exc_info]
    assert [record.levelno for record in raised] == [level]


@pytest.mark.parametrize("body", [b"", b"garbage", b'{"oslo.version":"3.0","oslo.message":"{}"}', b"{}"])
def test_a_malformed_request_is_dropped(
    server: RPCServer, client: RPCClient, transport: Transport, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that is no request is dropped with an error in the log, and the server goes on."""
    server.start()
    raw(transport, body)
    assert client.call({}, "note", value=1) == 1
    server.wait(EVENT_TIMEOUT)
    assert "was dropped" in caplog.text
    assert depth(transport) == 0


def test_what_has_expired_does_not_run(server: RPCServer, transport: Transport, endpoint: Endpoint) -> None:
    """A request whose time has run out is not run."""
    server.start()
    raw(transport, encode_request(Request("note", {"value": 1}, "a", hints=Hints(ttl=0.0)), JSON))
    raw(transport, encode_request(Request("note", {"value": 2}, "b", hints=Hints(ttl=50.0)), JSON))
    endpoint.wait()
    server.wait(EVENT_TIMEOUT)
    assert endpoint.ran == [2]


def test_clocks_that_differ_let_nothing_expire(server: RPCServer, transport: Transport, endpoint: Endpoint) -> None:
    """A sender's clock that is far behind never keeps a request from being run."""
    server.start()
    for at in (0.0, time.time() - 10**6, time.time() + 10**6):
        hints = Hints(ttl=50.0, at=at)
        raw(transport, encode_request(Request("note", {"value": at}, f"at {at}", hints=hints), JSON))
    endpoint.wait(3)


@pytest.mark.parametrize("policy", ["at_most_once", "at_least_once"])
def test_the_same_request_runs_once(server: RPCServer, transport: Transport, endpoint: Endpoint, policy: str) -> None:
    """A request that comes a second time, by its id, is not run again here, and is accepted."""
    server.start()
    body = encode_request(Request("note", {}, "the id", hints=Hints(policy=policy)), JSON)
    for _ in range(3):
        raw(transport, body)
    endpoint.wait()
    until(
        lambda: depth(transport) == 0, "all of them are accepted", EVENT_TIMEOUT
    )  # A stop would give back what waits.
    server.wait(EVENT_TIMEOUT)
    assert endpoint.ran == [None]


def test_a_request_that_is_asked_for_again_runs_again(
    server: RPCServer, transport: Transport, endpoint: Endpoint
) -> None:
    """Where its caller says that it has no answer, and under at_least_once alone."""
    server.start()
    for policy, again in (("at_least_once", False), ("at_least_once", True), ("at_most_once", True)):
        hints = Hints(policy=policy, again=again)
        raw(transport, encode_request(Request("note", {"value": policy}, "the id", hints=hints), JSON))
        until(lambda: depth(transport) == 0, "the request is done with")
    server.wait(EVENT_TIMEOUT)
    assert endpoint.ran == ["at_least_once", "at_least_once"]


def test_a_cast_is_run_again_after_one_two_and_four_seconds(
    server: RPCServer, client: RPCClient, endpoint: Endpoint, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These are the pauses between the tries of a cast that raises; from the fourth on, eight seconds."""
    monkeypatch.setattr(msgbus.failed_casts, "RETRY_DELAYS", PAUSES)
    pauses: list[float] = []
    call_later = transport.loop.call_later

    def at_once(delay: float, func: Callable[[], object]) -> None:
        if delay >= 1.0:
            pauses.append(delay)
            delay = 0.0
        call_later(delay, func)

    monkeypatch.setattr(transport.loop, "call_later", at_once)
    transport.conf.set_override("rpc_cast_retries", 5)
    server = new_server(transport, endpoint)
    server.start()
    client.prepare(delivery="at_least_once").cast({}, "fail")
    endpoint.wait(6)
    server.wait(EVENT_TIMEOUT)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_requests_without_an_id_all_run(server: RPCServer, transport: Transport, endpoint: Endpoint) -> None:
    """A stock peer's request without an id is never taken for a duplicate."""
    server.start()
    for _ in range(2):
        raw(transport, b'{"method": "note", "args": {}}')
    endpoint.wait(2)


def test_memory_of_requests_is_bounded(
    server: RPCServer, transport: Transport, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server remembers a bounded number of requests: the oldest are forgotten first."""
    monkeypatch.setattr(msgbus.server_calls, "REMEMBERED_IDS", 2)
    server.start()
    for unique_id in ("a", "b", "c", "a"):
        raw(transport, encode_request(Request("note", {"value": unique_id}, unique_id), JSON))
        endpoint.wait()
    assert endpoint.ran == ["a", "b", "c", "a"]


# Dead letters


def test_a_cast_that_raises_is_run_again(
    server: RPCServer, client: RPCClient, endpoint: Endpoint, letters: list[DeadLetter], transport: Transport
) -> None:
    """Under at_least_once a cast that raises is tried again, and is done when it does not."""
    server.start()
    client.prepare(delivery="at_least_once").cast({}, "fail", times=2)
    endpoint.wait(3)
    server.wait(EVENT_TIMEOUT)
    assert len(endpoint.ran) == 3
    assert not letters
    assert depth(transport) == 0


def test_a_cast_that_always_raises_is_given_up(
    server: RPCServer, client: RPCClient, endpoint: Endpoint, letters: list[DeadLetter], transport: Transport
) -> None:
    """After three further tries the cast goes to the dead letters and to the hook, with all that is known of it."""
    server.start()
    client.prepare(delivery="at_least_once").cast({}, "fail")
    endpoint.wait(4)
    (letter,) = dead_letters_of(transport)
    assert letter == letters[0]
    assert letter.reason == "RuntimeError: failure 4"
    assert (letter.attempts, letter.server, letter.content_type) == (4, "h1", JSON)
    assert letter.address == "topic 'foo' (exchange 'msgbus')"
    assert "failure 4" in letter.traceback[-1]
    assert b"fail" in letter.body
    assert depth(transport) == 0


@pytest.mark.parametrize("method", ["nothing", "_private"])
def test_a_cast_that_no_try_could_help_is_given_up_at_once(
    server: RPCServer, client: RPCClient, letters: list[DeadLetter], transport: Transport, method: str
) -> None:
    """A cast that no endpoint can run is not tried again."""
    server.start()
    client.prepare(delivery="at_least_once").cast({}, method)
    (letter,) = dead_letters_of(transport)
    assert (letter.attempts, letters) == (1, [letter])


@pytest.mark.parametrize("retries", [0, 1])
def test_how_often_is_an_option(endpoint: Endpoint, retries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option rpc_cast_retries says how often a cast is run again."""
    monkeypatch.setattr(msgbus.failed_casts, "RETRY_DELAYS", (0.001,))
    transport = new_transport(rpc_cast_retries=retries, rpc_delivery="at_least_once")
    server = new_server(transport, endpoint)
    server.start()
    get_rpc_client(transport, Target(topic="foo")).cast({}, "fail")
    (letter,) = dead_letters_of(transport)
    assert letter.attempts == len(endpoint.ran) == retries + 1
    assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_an_exception_is_an_answer(
    server: RPCServer, client: RPCClient, endpoint: Endpoint, transport: Transport, delivery: Any
) -> None:
    """A call whose method raises is not tried again, under either policy: the caller has the exception at once."""
    server.start()
    with pytest.raises(RuntimeError, match="failure 1"):
        client.prepare(delivery=delivery, timeout=5.0).call({}, "fail")
    until(lambda: depth(transport) == 0, "the request is done with")
    server.wait(EVENT_TIMEOUT)
    assert endpoint.failures == 1


@pytest.mark.parametrize("retries", [0, 3])
def test_at_most_once_casts_are_never_run_again(
    endpoint: Endpoint, letters: list[DeadLetter], retries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under at_most_once a cast that raises is logged, and that is all: it is neither run again nor a dead letter."""
    monkeypatch.setattr(msgbus.failed_casts, "RETRY_DELAYS", (0.0,))
    transport = new_transport(rpc_cast_retries=retries)
    server = new_server(transport, endpoint, on_dead_letter=letters.append)
    server.start()
    get_rpc_client(transport, Target(topic="foo")).cast({}, "fail")
    endpoint.wait()
    server.wait(EVENT_TIMEOUT)
    assert len(endpoint.ran) == 1
    assert not letters
    assert transport.inspect(DEAD, 1.0) is None or not depth(transport, DEAD)
    transport.cleanup()


def test_an_expected_exception_of_a_cast(
    server: RPCServer, client: RPCClient, endpoint: Endpoint, letters: list[DeadLetter]
) -> None:
    """A cast that raises what it is expected to is done."""
    server.start()
    client.prepare(delivery="at_least_once").cast({}, "expects")
    endpoint.wait()
    server.wait(EVENT_TIMEOUT)
    assert len(endpoint.ran) == 1
    assert not letters


def test_a_hook_that_raises(
    transport: Transport, client: RPCClient, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of the hook for dead letters is logged, and the letter is stored all the same."""

    def hook(_letter: DeadLetter) -> None:
        raise ValueError("of the hook")

    server = new_server(transport, endpoint, on_dead_letter=hook)
    server.start()
    client.prepare(delivery="at_least_once").cast({}, "nothing")
    assert len(dead_letters_of(transport)) == 1
    assert server.wait(EVENT_TIMEOUT) == 0
    assert depth(transport) == 0
    assert "of the hook" in caplog.text


def test_a_dead_letter_that_cannot_be_stored(
    server: RPCServer, client: RPCClient, letters: list[DeadLetter], transport: Transport, bus: Bus
) -> None:
    """Where the dead letter cannot be stored the message stays in the message system."""

    def hook(letter: DeadLetter) -> None:
        letters.append(letter)
        bus.fail_next(LOST)

    server._processor.failed_casts._dead_letters._hook = hook
    server.start()
    client.prepare(delivery="at_least_once").cast({}, "nothing")
    server.wait(EVENT_TIMEOUT)
    assert letters
    assert (depth(transport) or 0) + (depth(transport, DEAD) or 0) == 1


def test_without_storage_the_hook_is_all(
    server: RPCServer,
    client: RPCClient,
    letters: list[DeadLetter],
    transport: Transport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the message system does not store, a dead letter goes to the log and the hook, and the message is done."""
    server.start()
    monkeypatch.setattr(transport.driver, "capabilities", frozenset())
    client.prepare(delivery="at_least_once").cast({}, "nothing")
    server.wait(EVENT_TIMEOUT)
    monkeypatch.undo()
    assert len(letters) == 1
    assert depth(transport) == 0
    assert not depth(transport, DEAD)


# What may have run before


def redeliver(transport: Transport, send: Callable[[], object]) -> None:
    """Send something that a first consumer is handed and loses, so that the server gets it as redelivered."""
    lost = transport.driver.subscribe([TOPIC], lambda _delivery: None, prefetch=1)
    send()
    lost.close().result(0)


def test_a_cast_that_may_have_run(
    server: RPCServer, client: RPCClient, endpoint: Endpoint, letters: list[DeadLetter], transport: Transport
) -> None:
    """Under at_most_once a redelivered cast is not run, and goes to the dead letters."""
    redeliver(transport, lambda: client.cast({}, "note"))
    server.start()
    (letter,) = dead_letters_of(transport)
    assert "may have run before" in letter.reason
    assert letters == [letter]
    assert not endpoint.ran


def test_an_at_least_once_cast_that_may_have_run(
    server: RPCServer, client: RPCClient, endpoint: Endpoint, transport: Transport
) -> None:
    """Under at_least_once a redelivered cast is run."""
    redeliver(transport, lambda: client.prepare(delivery="at_least_once").cast({}, "note"))
    server.start()
    endpoint.wait()


def test_a_call_that_may_have_run(endpoint: Endpoint) -> None:
    """Under at_most_once a redelivered call is declined: its outcome is unknown, after the grace."""
    transport = new_transport(rpc_reply_grace=0.01)
    server = new_server(transport, endpoint)
    lost = transport.driver.subscribe([TOPIC], lambda _delivery: None, prefetch=1)
    running = call_in_thread(get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT), "note")
    while not len(transport.router):
        pass
    while not (found := transport.inspect(TOPIC, 1.0)) or found.messages:
        pass
    server.start()
    lost.close()
    error = running.exception(EVENT_TIMEOUT)
    assert type(error).__name__ == "OutcomeUnknown"
    assert not isinstance(error, MessagingTimeout)
    assert not endpoint.ran
    assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


def test_ping_can_be_switched_off(endpoint: Endpoint) -> None:
    """With rpc_ping_enabled off a server does not answer pings."""
    transport = new_transport(rpc_ping_enabled=False)
    server = new_server(transport, endpoint)
    server.start()
    assert get_rpc_client(transport, Target(topic="foo")).ping(0.5) == []
    assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


class WithStockPing:
    """An endpoint that answers the ping of oslo.messaging by itself."""

    def oslo_rpc_server_ping(self, _ctxt: object) -> str:
        return "mine"


class SecondVersion:
    """An endpoint that has nothing of version 1."""

    target = Target(version="2.0")

    @expose
    def note(self, _ctxt: object) -> None:
        """Do nothing."""


def test_the_ping_of_oslo_messaging_is_answered() -> None:
    """With any policy and arguments, unless an endpoint does so; and it changes no error and no description."""
    transport = new_transport()
    for topic, endpoint in {"plain": SecondVersion(), "own": WithStockPing()}.items():
        policy = ExplicitRPCAccessPolicy if topic == "plain" else None
        target = Target(topic=topic, server="h1")
        get_rpc_server(transport, target, [endpoint], access_policy=policy).start()
    plain = get_rpc_client(transport, Target(topic="plain"), timeout=EVENT_TIMEOUT)
    assert plain.call({}, "oslo_rpc_server_ping") == "pong"
    assert plain.call({}, "oslo_rpc_server_ping", anything=1) == "pong"
    with pytest.raises(UnsupportedVersion):
        plain.call({}, "note")
    with pytest.raises(UnsupportedVersion):
        plain.prepare(namespace="other").call({}, "oslo_rpc_server_ping")
    described = plain.prepare(namespace="msgbus").call({}, "describe")
    assert [interface["version"] for interface in described["interfaces"]] == ["2.0"]
    own = get_rpc_client(transport, Target(topic="own"), timeout=EVENT_TIMEOUT)
    assert own.call({}, "oslo_rpc_server_ping") == "mine"
    transport.cleanup()


def test_the_ping_of_oslo_messaging_can_be_switched_off(endpoint: Endpoint) -> None:
    """As that of msgbus."""
    transport = new_transport(rpc_ping_enabled=False)
    server = new_server(transport, endpoint)
    server.start()
    with pytest.raises(NoSuchMethod):
        get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT).call({}, "oslo_rpc_server_ping")
    assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


def test_a_second_server_of_the_same_name_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Where a name is taken, the second server's log says so: a request for it may go to either."""
    transport = new_transport()
    servers = [get_rpc_server(transport, Target(topic="t", server="twin"), [object()]) for _ in range(2)]
    servers[0].start()
    assert "has this name" not in caplog.text
    servers[1].start()
    assert "server=twin>: another server has this name" in caplog.text
    for server in servers:
        server.wait()
    transport.cleanup()
