"""`current_request`, and the filter that puts it into a service's log."""

from __future__ import annotations

import contextvars
import gc
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import msgbus
from msgbus import CurrentRequest, NoCurrentRequest, RPCClient, Target, Transport, current_request
from msgbus.conformance.waiting import until
from msgbus.deadline import current
from msgbus.drivers.base import Address
from msgbus.encoding import encode_request
from msgbus.message import JSON, Hints, Request
from msgbus.server_call import ServerCall
from tests.core.test_server import raw, redeliver
from tests.support import EVENT_TIMEOUT, Awaited, new_transport

LOG = logging.getLogger("a.service")


class Endpoint(Awaited):
    """Keeps what it knows of each request."""

    target = Target(namespace="admin", version="1.2")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[CurrentRequest] = []
        self.go_on = threading.Event()
        self.states: list[Any] = []

    def look(self, ctxt: dict[str, Any]) -> None:
        request = current_request()
        assert request.context == ctxt
        self.states.append((request.time_left, request.cancelled))
        self.found.append(request)
        LOG.warning("looking")
        self.came.release()

    def stream(self, ctxt: dict[str, Any]) -> Iterator[int]:
        self.look(ctxt)
        yield 1
        self.look(ctxt)
        yield 2

    def inherits(self, ctxt: dict[str, Any]) -> Iterator[float | None]:
        deadline = current.get()
        yield None if deadline is None else deadline - time.monotonic()

    def fail(self, ctxt: dict[str, Any]) -> None:
        self.look(ctxt)
        raise RuntimeError("always")

    def thread(self, ctxt: dict[str, Any]) -> str:
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(context.run, self.look, ctxt).result(EVENT_TIMEOUT)
            with pytest.raises(NoCurrentRequest):
                pool.submit(current_request).result(EVENT_TIMEOUT)
        return current_request().method

    def hold(self, ctxt: dict[str, Any]) -> None:
        self.look(ctxt)
        assert self.go_on.wait(EVENT_TIMEOUT)
        request = current_request()
        end = time.monotonic() + EVENT_TIMEOUT
        while not request.cancelled and time.monotonic() < end:
            time.sleep(0.005)
        self.states.append(request.cancelled)
        self.came.release()


@pytest.fixture
def transport(retries_at_once: None) -> Iterator[Transport]:
    """A transport in memory, on which casts are run again without much delay."""
    transport = new_transport(rpc_reply_grace=0.01)
    yield transport
    transport.cleanup()


@pytest.fixture
def endpoint(transport: Transport) -> Iterator[Endpoint]:
    """An endpoint that is served."""
    endpoint = Endpoint()
    server = msgbus.get_rpc_server(transport, Target(topic="foo", server="h1"), [endpoint])
    server.start()
    yield endpoint
    endpoint.go_on.set()
    assert server.wait(EVENT_TIMEOUT) == 0


@pytest.fixture
def client(transport: Transport) -> RPCClient:
    """A client of it."""
    target = Target(topic="foo", namespace="admin", version="1.1")
    return msgbus.get_rpc_client(transport, target, timeout=EVENT_TIMEOUT)


def test_outside_a_request() -> None:
    """Where no request is being run the error says so, and how a thread may know of one."""
    with pytest.raises(NoCurrentRequest, match="copy_context") as caught:
        current_request()
    assert isinstance(caught.value, msgbus.MessagingException)


def test_a_call(endpoint: Endpoint, client: RPCClient) -> None:
    """A method learns who asks for what, where, under which policy, and how long it may take."""
    client.call({"user": "ada"}, "look")
    (found,) = endpoint.found
    assert found.call_id is not None
    assert found.request_id == found.call_id
    assert len(found.call_id) == 32
    assert (found.method, found.server, found.topic) == ("look", "h1", "foo")
    assert found.target == Target(exchange="msgbus", topic="foo", namespace="admin", version="1.1")
    assert found.context == {"user": "ada"}
    assert (found.delivery, found.redelivered, found.attempts) == ("at_most_once", False, 1)
    ((left, cancelled),) = endpoint.states
    assert 0 < left <= EVENT_TIMEOUT
    assert cancelled is False


def test_it_is_frozen_and_shows_no_context(endpoint: Endpoint, client: RPCClient) -> None:
    """What a method gets cannot be changed, and its repr, which ends in logs, does not hold the caller's context."""
    client.call({"token": "s3cret"}, "look")
    (found,) = endpoint.found
    with pytest.raises(FrozenInstanceError):
        found.method = "other"  # type: ignore[misc]  # on purpose
    assert "s3cret" not in repr(found)
    assert "look" in repr(found)


@pytest.mark.parametrize(
    ("prepared", "cast", "target"),
    [
        ({}, "cast", {}),
        ({"server": "h1"}, "cast", {"server": "h1"}),
        ({}, "fanout_cast", {"fanout": True}),
        ({"delivery": "at_least_once"}, "cast", {}),
    ],
)
def test_a_cast(
    endpoint: Endpoint, client: RPCClient, prepared: dict[str, Any], cast: str, target: dict[str, Any]
) -> None:
    """A cast has a request id and no call id, says whom it was sent to, and has no deadline unless one was given."""
    getattr(msgbus.RPCClient(client.transport, client.target).prepare(**prepared), cast)({}, "look")
    endpoint.wait()
    (found,) = endpoint.found
    assert (found.call_id, len(found.request_id)) == (None, 32)
    assert found.target == Target(exchange="msgbus", topic="foo", namespace="admin", version="1.1", **target)
    assert found.delivery == prepared.get("delivery", "at_most_once")
    assert endpoint.states == [(None, False)]


def test_a_generator(endpoint: Endpoint, client: RPCClient) -> None:
    """Each step of a generator knows its request; the time that is left is that of the whole stream."""
    assert list(client.prepare(deadline=1000).multicall({}, "stream")) == [1, 2]
    first, second = endpoint.found
    assert first.call_id == second.call_id
    before, after = (left for left, _cancelled in endpoint.states)
    assert EVENT_TIMEOUT < after <= before <= 1000
    endpoint.states.clear()
    assert list(client.multicall({}, "stream")) == [1, 2]
    assert client.call({}, "stream") == 2
    (inherited,) = client.prepare(deadline=1000).multicall({}, "inherits")
    assert EVENT_TIMEOUT < inherited <= 1000  # What the generator calls may take so long.


def test_a_thread_with_a_copy_of_the_context(endpoint: Endpoint, client: RPCClient) -> None:
    """A thread that a method starts knows of the request if it runs in a copy of the context, and only then."""
    assert client.call({}, "thread") == "thread"
    assert [found.method for found in endpoint.found] == ["thread"]


def test_a_method_sees_that_its_client_gave_up(endpoint: Endpoint, client: RPCClient) -> None:
    """`cancelled` becomes true while the method runs, once the client has given up."""
    with pytest.raises(msgbus.MessagingTimeout):
        client.prepare(timeout=3.0).call({}, "hold")
    endpoint.go_on.set()
    endpoint.wait(2)
    assert endpoint.states[1:] == [True]
    assert endpoint.found[0].cancelled
    until(lambda: endpoint.found[0].time_left == 0, "the end of its time, a moment later", EVENT_TIMEOUT)


def test_each_try_of_a_cast_is_counted(transport: Transport, client: RPCClient) -> None:
    """A cast that is run again knows how often it was begun, and so does the hook for dead letters."""
    in_hook: list[CurrentRequest] = []
    endpoint = Endpoint()

    def hook(letter: msgbus.DeadLetter) -> None:
        in_hook.append(current_request())
        endpoint.came.release()

    server = msgbus.get_rpc_server(transport, Target(topic="foo", server="h1"), [endpoint], on_dead_letter=hook)
    server.start()
    client.prepare(delivery="at_least_once").cast({}, "fail")
    endpoint.wait(5)
    assert [found.attempts for found in endpoint.found] == [1, 2, 3, 4]
    assert len({found.request_id for found in [*endpoint.found, *in_hook]}) == 1
    assert in_hook[0].method == "fail"
    assert server.wait(EVENT_TIMEOUT) == 0


def test_a_redelivered_request_is_known_as_such(transport: Transport, client: RPCClient) -> None:
    """A request that another server had before is known to be redelivered, which counts as an attempt."""
    redeliver(transport, lambda: client.prepare(delivery="at_least_once").cast({}, "look"))
    endpoint = Endpoint()
    server = msgbus.get_rpc_server(transport, Target(topic="foo", server="h1"), [endpoint])
    server.start()
    endpoint.wait()
    assert [(found.redelivered, found.attempts) for found in endpoint.found] == [(True, 2)]
    assert server.wait(EVENT_TIMEOUT) == 0


def test_a_nested_request_is_known_by_itself(transport: Transport, endpoint: Endpoint) -> None:
    """A method that calls another server, even in its own process, has its own request before and after."""

    class Outer:
        def ask(self, ctxt: object) -> list[str]:
            before = current_request().method
            inner = msgbus.get_rpc_client(transport, Target(topic="foo", namespace="admin"))
            inner.call({}, "look")
            return [before, current_request().method]

    server = msgbus.get_rpc_server(transport, Target(topic="outer", server="h1"), [Outer()])
    server.start()
    asking = msgbus.get_rpc_client(transport, Target(topic="outer"), timeout=EVENT_TIMEOUT)
    assert asking.call({}, "ask") == ["ask", "ask"]
    assert endpoint.found[0].method == "look"
    assert server.wait(EVENT_TIMEOUT) == 0


# The log


@pytest.fixture
def lines() -> Iterator[Callable[[], list[str]]]:
    """What the service has logged, each line with what the filter says of the request."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(msgbus.RequestLogFilter())
    names = ("msgbus_call", "msgbus_server", "msgbus_topic", "msgbus_method", "message")
    handler.setFormatter(logging.Formatter(" ".join(f"%({name})s" for name in names)))
    LOG.addHandler(handler)
    yield lambda: stream.getvalue().splitlines()
    LOG.removeHandler(handler)


def test_one_call_is_followed_through_the_services_log(
    endpoint: Endpoint, client: RPCClient, lines: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Lines that a service writes have the id that is in the lines of both sides, the topic and the method."""
    caplog.set_level(logging.DEBUG, "msgbus")
    LOG.warning("starting")
    client.call({}, "look")
    list(client.multicall({}, "stream"))
    LOG.warning("stopping")
    call, stream = endpoint.found[0].call_id, endpoint.found[1].call_id
    assert lines() == [
        "- - - - starting",
        f"{call} h1 foo look looking",
        *[f"{stream} h1 foo stream looking"] * 2,
        "- - - - stopping",
    ]
    assert f"sending {call} to topic 'foo'" in caplog.text
    assert f"received {call}: 'look'" in caplog.text


def test_foreign_text_makes_no_lines_of_its_own(
    transport: Transport, endpoint: Endpoint, lines: Callable[[], list[str]]
) -> None:
    """An id from elsewhere with a line break or an escape sequence in it is shown as such, and cut if it is long."""
    for unique_id in ("a\nforged", "\x1b[2J", "x" * 150):
        request = Request("look", {}, unique_id, namespace="admin", hints=Hints())
        raw(transport, encode_request(request, JSON))
        endpoint.wait()
    assert lines() == [
        r"a\nforged h1 foo look looking",
        r"\x1b[2J h1 foo look looking",
        f"{'x' * 99}… h1 foo look looking",
    ]


def test_a_stock_clients_call(transport: Transport, endpoint: Endpoint) -> None:
    """A request of a peer that says little has what is known; without an id of its own that of the call counts."""
    request = Request("look", namespace="admin", call_id="c1", reply_to="nowhere", unique_id="")
    raw(transport, encode_request(request, JSON), address=Address("server", "msgbus", "foo", "h1"))
    endpoint.wait()
    (found,) = endpoint.found
    assert (found.request_id, found.call_id, found.target.server) == ("c1", "c1", "h1")


def test_a_request_leaves_no_garbage(endpoint: Endpoint, client: RPCClient) -> None:
    """What calls and casts have used is freed when they are over, not when the garbage is collected."""

    def alive() -> int:
        return sum(isinstance(found, ServerCall) for found in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        for _ in range(20):
            client.call({}, "look")
            client.prepare(delivery="at_least_once").call({}, "look")
            client.cast({}, "look")
        endpoint.wait(20 * 3)
        endpoint.found.clear()
        end = time.monotonic() + EVENT_TIMEOUT
        while alive() > before + 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert alive() <= before + 2  # The worker's thread may hold the last one.
    finally:
        gc.enable()
