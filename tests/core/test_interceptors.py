"""Interceptors of clients and servers for threads. tests/aio/test_interceptors.py has those for asyncio."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from contextvars import ContextVar
from typing import Any

import pytest

from msgbus import (
    AccessDenied,
    CastsFailed,
    DeadLetter,
    InterceptedRequest,
    JsonPayloadSerializer,
    MessagingException,
    MessagingTimeout,
    NoSuchMethod,
    Proceed,
    RPCClient,
    RPCDispatcher,
    RPCDispatcherError,
    RPCServer,
    SerializationError,
    Target,
    Transport,
    current_request,
    expected_exceptions,
    get_rpc_client,
    get_rpc_server,
)
from msgbus.conformance.waiting import until
from msgbus.encoding import encode_request
from msgbus.executor import Executor
from msgbus.message import JSON, MAX_METADATA, POLICIES, Hints, Request
from msgbus.processing import Processor
from tests.core.test_processing import Handed
from tests.support import EVENT_TIMEOUT, Awaited, new_transport

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")

Log = list[Any]


class Refused(Exception):
    """What the tests' interceptors and methods raise."""


class Endpoint(Awaited):
    """What is called."""

    def __init__(self) -> None:
        super().__init__()
        self.log: Log = []
        self.fails = 0

    def note(self, ctxt: Any, value: Any = None) -> Any:
        self.log.append((ctxt, value))
        self.came.release()
        if self.fails:
            self.fails -= 1
            raise Refused("not yet")
        return value

    def who(self, ctxt: Any) -> Any:
        return TENANT.get(), dict(ctxt), current_request().metadata

    def thread(self, ctxt: Any) -> str:
        return threading.current_thread().name

    def count(self, ctxt: Any, to: int, fail: bool = False) -> Iterator[int]:
        try:
            yield from range(to)
            if fail:
                raise Refused("midway")
        finally:
            self.log.append("closed")
            self.came.release()

    @expected_exceptions(LookupError)
    def expects(self, ctxt: Any, stream: bool = False) -> Any:
        raise LookupError("no such thing")

    @expected_exceptions(LookupError)
    def items_and_expected(self, ctxt: Any) -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    def child(self, ctxt: Any) -> None:
        if not os.fork():
            return
        self.came.release()


@pytest.fixture
def transport(retries_at_once: None) -> Iterator[Transport]:
    """A transport in memory."""
    transport = new_transport(allowed_remote_exmods=[__name__])
    yield transport
    transport.cleanup()


@pytest.fixture
def endpoint() -> Endpoint:
    """What the server runs."""
    return Endpoint()


@pytest.fixture
def serve(transport: Transport, endpoint: Endpoint) -> Iterator[Callable[..., RPCServer]]:
    """Starts a server with these interceptors."""
    servers: list[RPCServer] = []

    def start(*interceptors: Any, **options: Any) -> RPCServer:
        target = Target(topic="foo", server="h1")
        server = get_rpc_server(transport, target, [endpoint], interceptors=interceptors, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
        assert server.wait(EVENT_TIMEOUT) == 0


@pytest.fixture
def connect(transport: Transport) -> Callable[..., RPCClient]:
    """Makes a client with these interceptors."""

    def make(*interceptors: Any, **options: Any) -> RPCClient:
        options = {"timeout": EVENT_TIMEOUT, **options}
        return get_rpc_client(transport, Target(topic="foo"), interceptors=interceptors, **options)

    return make


def named(name: str, log: Log) -> Callable[[InterceptedRequest, Proceed], Any]:
    """An interceptor that notes when it begins and ends."""

    def intercept(request: InterceptedRequest, proceed: Proceed) -> Any:
        log.append(f"{name} begins")
        try:
            return proceed(request)
        finally:
            log.append(f"{name} ends")

    return intercept


def noting(log: Log) -> Callable[[InterceptedRequest, Proceed], Any]:
    """An interceptor that notes what passes."""

    def intercept(request: InterceptedRequest, proceed: Proceed) -> Any:
        result = proceed(request)
        log.append((request.kind, request.method, request.target.fanout, dict(request.args), result))
        return result

    return intercept


def test_the_first_in_the_list_is_the_outermost(serve: Any, connect: Any) -> None:
    """On both sides each is around the next one, and the client's are around the server's."""
    log: Log = []
    serve(named("c", log), named("d", log))
    assert connect(named("a", log), named("b", log)).call({}, "note", value=1) == 1
    assert log == [f"{name} begins" for name in "abcd"] + [f"{name} ends" for name in "dcba"]


def test_every_verb_passes_the_interceptors_of_a_client(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """Calls, casts, casts to all, each of many casts, and streams; with the method, target, arguments and result."""
    log: Log = []
    serve()
    client = connect(noting(log))
    client.call({}, "note", value=1)
    client.cast({}, "note", value=2)
    client.fanout_cast({}, "note", value=3)
    assert client.cast_many({}, [("note", {"value": 4}), ("note", {"value": 5})]) == 2
    assert list(client.multicall({}, "count", to=2)) == [0, 1]
    endpoint.wait(6)
    assert log[:5] == [
        ("call", "note", None, {"value": 1}, 1),
        ("cast", "note", None, {"value": 2}, None),
        ("cast", "note", True, {"value": 3}, None),
        ("cast", "note", None, {"value": 4}, None),
        ("cast", "note", None, {"value": 5}, None),
    ]
    assert log[5][:4] == ("multicall", "count", None, {"to": 2})
    assert sorted(value for _, value in endpoint.log[:-1]) == [1, 2, 3, 4, 5]


def test_every_request_passes_the_interceptors_of_a_server(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """Likewise on the server, which knows where each was sent to."""
    log: Log = []
    serve(noting(log))
    client = connect()
    client.call({}, "note", value=1)
    client.cast({}, "note", value=2)
    endpoint.wait(2)
    client.fanout_cast({}, "note", value=3)
    endpoint.wait()
    assert list(client.multicall({}, "count", to=2)) == [0, 1]
    until(lambda: len(log) == 4, "all have passed", EVENT_TIMEOUT)
    assert [entry[:4] for entry in log] == [
        ("call", "note", None, {"value": 1}),
        ("cast", "note", None, {"value": 2}),
        ("cast", "note", True, {"value": 3}),
        ("multicall", "count", None, {"to": 2}),
    ]
    assert log[0][4] == 1


def test_a_ping_is_not_intercepted(serve: Any, connect: Any, transport: Transport) -> None:
    """Neither side's interceptors see it: it asks whether the server lives."""
    log: Log = []
    serve(noting(log))
    (answer,) = connect(noting(log)).ping(EVENT_TIMEOUT)
    assert answer["server"] == "h1"
    assert log == []


def test_a_prepared_client_keeps_its_interceptors(serve: Any, connect: Any) -> None:
    """Whatever is prepared: they see the target that was."""
    log: Log = []
    serve()
    client = connect(noting(log)).prepare(server="h1", timeout=EVENT_TIMEOUT)
    assert client.call({}, "note", value=1) == 1
    assert len(log) == 1


def test_what_an_interceptor_changes_is_what_is_sent(serve: Any, connect: Any) -> None:
    """Context, arguments and metadata of a client may be changed in place or be set; the caller's own stay."""

    def in_place(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.context["tenant"] = "t1"
        request.metadata["token"] = "secret"
        return proceed(request)

    def setting(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.metadata = {**request.metadata, "more": "ü"}
        request.args = {}
        return proceed(request)

    serve()
    mine = {"user": "ada"}
    found = connect(in_place, setting).call(mine, "who", dropped=1)
    assert found == ["nobody", {"user": "ada", "tenant": "t1"}, {"token": "secret", "more": "ü"}]
    assert mine == {"user": "ada"}


def test_what_a_server_changes_is_what_the_method_gets(serve: Any, connect: Any) -> None:
    """Its context, arguments, metadata, and the variables of the request's own context."""

    def change(request: InterceptedRequest, proceed: Proceed) -> Any:
        assert current_request().metadata == {}
        TENANT.set("t1")
        request.context["seen"] = True
        request.args = {}
        request.metadata = {"by": "server"}
        return proceed(request)

    serve(change)
    client = connect()
    for _ in range(2):
        assert client.call({"user": "ada"}, "who", x=1) == ["t1", {"user": "ada", "seen": True}, {"by": "server"}]


def test_interceptors_of_a_server_run_inside_the_request(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """On the method's thread, with its current request and what is left of its time."""
    found: Log = []

    def look(request: InterceptedRequest, proceed: Proceed) -> Any:
        found.append((threading.current_thread().name, current_request().method, request.time_left))
        return proceed(request)

    serve(look)
    name = connect(timeout=5.0).call({}, "thread")
    ((thread, method, left),) = found
    assert (thread, method) == (name, "thread")
    assert 0 < left <= 5.0


def test_a_client_sees_objects_and_a_server_plain_data(serve: Any, connect: Any) -> None:
    """A client's interceptors are before its serializer, and a server's have what the message holds."""
    seen: Log = []

    def look(request: InterceptedRequest, proceed: Proceed) -> Any:
        result = proceed(request)
        seen.append((request.args["value"], result))
        return result

    serve(look, serializer=JsonPayloadSerializer())
    connect(look, serializer=JsonPayloadSerializer()).call({}, "note", value={3})
    assert seen == [([3], [3]), ({3}, [3])]


def test_an_interceptor_may_answer_by_itself(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """Then nothing is sent, or the method does not run; the caller gets what it has returned."""

    def answer(request: InterceptedRequest, proceed: Proceed) -> Any:
        return iter([7, 8]) if request.kind == "multicall" else 7

    serve(answer)
    for client in (connect(answer), connect()):
        assert client.call({}, "note", value=1) == 7
        client.cast({}, "note", value=1)
        client.fanout_cast({}, "note", value=1)
        assert client.cast_many({}, [("note", {"value": 1})] * 3) == 3
        assert list(client.multicall({}, "count", to=1)) == [7, 8]
    assert endpoint.log == []


def test_what_an_interceptor_of_a_server_raises_is_the_answer(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """As if the method had raised it; so does what one of a client raises reach the caller."""

    def refuse(request: InterceptedRequest, proceed: Proceed) -> Any:
        raise AccessDenied("not you")

    serve(refuse)
    for client in (connect(), connect(refuse)):
        with pytest.raises(AccessDenied, match="not you"):
            client.call({}, "note")
        with pytest.raises(AccessDenied, match="not you"):
            list(client.multicall({}, "count", to=1))
    assert endpoint.log == []


def test_an_expected_exception_of_an_interceptor_is_no_fault(
    serve: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Decorated with `expected_exceptions` it is answered, and not logged as an error."""

    @expected_exceptions(PermissionError)
    def refuse(request: InterceptedRequest, proceed: Proceed) -> Any:
        raise PermissionError("not you")

    serve(refuse)
    with caplog.at_level(logging.WARNING), pytest.raises(PermissionError, match="not you"):
        connect().call({}, "note")
    assert caplog.records == []


def test_interceptors_see_expected_exceptions_as_they_are(
    serve: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And they stay expected, as the items of a stream do, also where these are wrapped."""
    seen: Log = []

    def look(request: InterceptedRequest, proceed: Proceed) -> Any:
        try:
            result = proceed(request)
            return each(result) if request.kind == "multicall" else result
        except LookupError as exc:
            seen.append(exc.args[0])
            raise

    def each(items: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from items
        except LookupError as exc:
            seen.append(exc.args[0])
            raise

    serve(look, look)
    with caplog.at_level(logging.WARNING):
        with pytest.raises(LookupError, match="no such thing"):
            connect().call({}, "expects")
        with pytest.raises(LookupError, match="no more"):
            list(connect().multicall({}, "items_and_expected"))
    assert seen == ["no such thing"] * 2 + ["no more"] * 2
    assert caplog.records == []


def test_an_interceptor_sees_that_there_is_no_such_method(serve: Any, connect: Any) -> None:
    """It is around the search for the method too, so that who is not let in does not learn what there is."""
    seen: Log = []

    def look(request: InterceptedRequest, proceed: Proceed) -> Any:
        try:
            return proceed(request)
        except NoSuchMethod as exc:
            seen.append(exc)
            raise

    serve(look)
    with pytest.raises(NoSuchMethod):
        connect().call({}, "nothing")
    assert len(seen) == 1


def test_a_client_may_try_again(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """Each time it proceeds it sends a request of its own, in the time that is left to the whole."""
    left: Log = []

    def retry(request: InterceptedRequest, proceed: Proceed) -> Any:
        for _ in range(2):
            try:
                return proceed(request)
            except Refused:
                left.append(request.time_left)
        return proceed(request)

    serve()
    endpoint.fails = 2
    assert connect(retry).call({}, "note", value=1) == 1
    assert len(endpoint.log) == 3
    assert EVENT_TIMEOUT > left[0] > left[1] > 0


def test_a_request_has_the_time_that_its_interceptors_have_left(serve: Any, connect: Any) -> None:
    """Also at its server: what they took is not there."""
    left: Log = []

    def linger(request: InterceptedRequest, proceed: Proceed) -> Any:
        first = request.time_left or 0.0
        until(lambda: (request.time_left or 0.0) < first - 0.3, "the clock goes on", EVENT_TIMEOUT)
        left.append(request.time_left)
        return proceed(request)

    def look(request: InterceptedRequest, proceed: Proceed) -> Any:
        left.append(request.time_left)
        return proceed(request)

    serve(look)
    connect(linger).call({}, "note")
    connect(linger).cast({}, "note")
    until(lambda: len(left) == 4, "both were run", EVENT_TIMEOUT)
    assert EVENT_TIMEOUT > left[0] >= left[1] > 0
    assert EVENT_TIMEOUT > left[2] >= left[3] > 0


def test_interceptors_use_up_the_time_of_a_request(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """What they take is not there for the request; if that is all, it is not sent."""

    def linger(request: InterceptedRequest, proceed: Proceed) -> Any:
        until(lambda: request.time_left == 0, "its time is over", EVENT_TIMEOUT)
        return proceed(request)

    serve()
    client = connect(linger, timeout=0.05)
    for send in (client.call, client.cast, client.fanout_cast):
        with pytest.raises(MessagingTimeout, match="its interceptors took all of its time"):
            send({}, "note")
    with pytest.raises(MessagingTimeout, match="its interceptors took all of its time"):
        client.prepare(deadline=0.05).multicall({}, "count", to=1)
    with pytest.raises(CastsFailed, match="its interceptors took all of its time"):
        client.cast_many({}, [("note", {})])
    assert endpoint.log == []


def test_an_interceptor_of_a_server_proceeds_once(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """The method of a request is begun once, as its policy promises; and not after the answer."""
    kept: Log = []

    def twice(request: InterceptedRequest, proceed: Proceed) -> Any:
        kept.append(lambda: proceed(request))
        proceed(request)
        return proceed(request)

    serve(twice)
    with pytest.raises(RPCDispatcherError, match="called proceed a second time"):
        connect().call({}, "note", value=1)
    with pytest.raises(RPCDispatcherError, match="after it had returned"):
        kept[0]()
    assert len(endpoint.log) == 1


def test_one_that_has_not_proceeded_cannot_do_so_later(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """When the request is answered, it is over."""
    kept: Log = []

    def answer(request: InterceptedRequest, proceed: Proceed) -> Any:
        kept.append(lambda: proceed(request))

    serve(answer)
    connect().call({}, "note", value=1)
    with pytest.raises(RPCDispatcherError, match="after it had returned"):
        kept[0]()
    assert endpoint.log == []


def test_interceptors_of_many_casts_change_no_request_of_the_caller(
    serve: Any, connect: Any, endpoint: Endpoint
) -> None:
    """Each gets a dict of its own, also if all requests have the same."""

    def add(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.args["value"] += 1
        return proceed(request)

    serve()
    mine = {"value": 1}
    assert connect(add).cast_many({}, [("note", mine)] * 2) == 2
    endpoint.wait(2)
    assert [value for _, value in endpoint.log] == [2, 2]
    assert mine == {"value": 1}


def test_interceptors_of_many_casts_proceed_once_and_may_raise(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """Of a cast of many the outcome is not known yet: what raises is not sent, and is that cast's failure."""

    def twice(request: InterceptedRequest, proceed: Proceed) -> Any:
        proceed(request)
        if request.args["value"] == 1:
            proceed(request)

    def refuse(request: InterceptedRequest, proceed: Proceed) -> Any:
        if request.args["value"] == 1:
            raise Refused("not this one")
        return proceed(request)

    serve()
    requests = [("note", {"value": number}) for number in range(3)]
    for interceptor, error in ((twice, MessagingException), (refuse, Refused)):
        endpoint.log.clear()
        with pytest.raises(CastsFailed) as failed:
            connect(interceptor).cast_many({}, requests)
        assert isinstance(failed.value.error, error)
        assert failed.value.index == 1
        endpoint.wait()
        assert [value for _, value in endpoint.log] == [0]


def test_a_cast_that_an_interceptor_refuses_is_run_again_and_dead_lettered(
    serve: Any, connect: Any, endpoint: Endpoint
) -> None:
    """As if the interceptor were part of the method; each attempt begins with the request as it came."""
    letters: list[DeadLetter] = []
    seen: Log = []

    def refuse(request: InterceptedRequest, proceed: Proceed) -> Any:
        seen.append((dict(request.args), dict(request.context), current_request().attempts))
        request.args["value"] = request.context["changed"] = 2
        raise Refused("not you")

    serve(refuse, on_dead_letter=letters.append)
    connect(delivery="at_least_once").cast({"user": "ada"}, "note", value=1)
    until(lambda: letters, "it is given up", EVENT_TIMEOUT)
    assert letters[0].reason == "Refused: not you"
    assert seen == [({"value": 1}, {"user": "ada"}, attempt) for attempt in (1, 2, 3, 4)]
    assert endpoint.log == []


def test_a_cast_that_raised_passes_the_interceptors_again(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """Its method's exception has passed through them."""
    log: Log = []
    endpoint.fails = 1
    serve(named("a", log))
    connect(delivery="at_least_once").cast({}, "note", value=1)
    endpoint.wait(2)
    until(lambda: len(log) == 4, "it has ended twice", EVENT_TIMEOUT)


def counted(seen: Log) -> Callable[[InterceptedRequest, Proceed], Any]:
    """An interceptor that notes what passes of a stream, and how it ends."""

    def intercept(request: InterceptedRequest, proceed: Proceed) -> Any:
        return each(proceed(request))

    def each(items: Any) -> Iterator[Any]:
        try:
            with closing(items):
                for item in items:
                    seen.append(item)
                    yield item * 10
            seen.append("end")
        except GeneratorExit:
            seen.append("closed")
            raise
        except Exception as exc:
            seen.append(str(exc))
            raise

    return intercept


@pytest.mark.parametrize("side", ["client", "server"])
def test_an_interceptor_sees_all_of_a_stream(serve: Any, connect: Any, endpoint: Endpoint, side: str) -> None:
    """Its items, its end, an error midway, and that it is closed: by iterating over what it proceeded with."""
    seen: Log = []
    serve(*([counted(seen)] if side == "server" else []))
    client = connect(*([counted(seen)] if side == "client" else []))
    assert list(client.multicall({}, "count", to=2)) == [0, 10]
    assert seen == [0, 1, "end"]
    seen.clear()
    stream = client.multicall({}, "count", to=2, fail=True)
    assert [next(stream), next(stream)] == [0, 10]
    with pytest.raises(Refused, match="midway"):
        next(stream)
    assert seen == [0, 1, "midway"]
    with pytest.raises(StopIteration):
        next(stream)
    seen.clear()
    endpoint.wait(2)
    with client.multicall({}, "count", to=10**6) as stream:
        assert next(stream) == 0
        assert "open" in repr(stream)
    endpoint.wait()
    until(lambda: seen[-1] == "closed", "it is closed", EVENT_TIMEOUT)
    assert "closed" in repr(stream)
    with pytest.raises(StopIteration):
        next(stream)
    assert list(client.multicall({}, "note", value=3)) == [30]


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_stream_is_closed_where_an_interceptor_does_not(
    serve: Any, connect: Any, endpoint: Endpoint, side: str
) -> None:
    """What it makes of the items may be any iterator: the method's generator is closed at the end all the same."""
    kept: Log = []

    def keep(request: InterceptedRequest, proceed: Proceed) -> Any:
        kept.append(proceed(request))
        return itertools.islice(kept[-1], 2)

    serve(*([keep] if side == "server" else []))
    client = connect(*([keep] if side == "client" else []))
    assert list(client.multicall({}, "count", to=10**6)) == [0, 1]
    endpoint.wait()
    with client.multicall({}, "count", to=10**6) as stream:
        assert next(stream) == 0
    endpoint.wait()


def test_a_stream_whose_client_has_gone_before_its_first_item_is_closed(serve: Any, connect: Any) -> None:
    """What an interceptor of the server has made of the items is closed, although none was taken from it."""
    made, closed = threading.Event(), threading.Event()

    class Items(Iterator[int]):
        def __next__(self) -> int:
            raise AssertionError("nobody wants one")

        def close(self) -> None:
            closed.set()

    kept: Log = []

    def slow(request: InterceptedRequest, proceed: Proceed) -> Any:
        proceed(request)
        made.set()
        until(lambda: current_request().cancelled, "the client has gone", EVENT_TIMEOUT)
        kept.append(Items())
        return kept[-1]

    serve(slow)
    stream = connect().multicall({}, "count", to=2)
    assert made.wait(EVENT_TIMEOUT)
    stream.close()
    assert closed.wait(EVENT_TIMEOUT)


def test_streams_that_were_begun_are_closed_if_an_interceptor_raises(
    serve: Any, connect: Any, endpoint: Endpoint
) -> None:
    """And so are those of earlier tries, if it has proceeded again."""
    kept: Log = []

    def refuse(request: InterceptedRequest, proceed: Proceed) -> Any:
        for _ in range(2):
            kept.append(proceed(request))
            assert next(kept[-1]) == 0
        if request.args["to"] == 10**6:
            raise Refused("no")
        return kept[-1]

    serve()
    with pytest.raises(Refused):
        connect(refuse).multicall({}, "count", to=10**6)
    endpoint.wait(2)
    with connect(refuse).multicall({}, "count", to=10**7) as stream:
        assert stream is kept[-1]
        endpoint.wait()
        assert next(stream) == 1
    endpoint.wait()


def test_what_is_no_iterator_is_the_only_item(serve: Any, connect: Any) -> None:
    """As where a method returns plainly."""

    def answer(request: InterceptedRequest, proceed: Proceed) -> Any:
        return [1, 2]

    serve(answer)
    assert list(connect().multicall({}, "count", to=1)) == [[1, 2]]
    assert list(connect(answer).multicall({}, "count", to=1)) == [[1, 2]]


def test_a_child_that_a_method_forks_does_not_answer(serve: Any, connect: Any, endpoint: Endpoint) -> None:
    """Also behind interceptors it ends."""
    log: Log = []
    serve(named("a", log))
    connect().call({}, "child")
    endpoint.wait()
    assert log == ["a begins", "a ends"]


TOO_MUCH = {"x": "y" * MAX_METADATA}


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (["a"], "is a dict of str to str"),
        ({"a": 1}, "is a dict of str to str"),
        ({1: "a"}, "is a dict of str to str"),
        (TOO_MUCH, f"has {MAX_METADATA + 1} bytes, and may have {MAX_METADATA}"),
        ({"x": "ü" * (MAX_METADATA // 2)}, f"has {MAX_METADATA + 1} bytes"),
        ({"x": "\ud800"}, "contains a value that cannot be sent"),
    ],
    ids=["list", "number", "number as name", "too much", "too much in bytes", "lone surrogate"],
)
def test_metadata_that_cannot_be_sent(serve: Any, connect: Any, metadata: Any, text: str) -> None:
    """It is refused on the client, in words."""

    def add(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.metadata = metadata
        return proceed(request)

    serve()
    with pytest.raises(SerializationError, match=text):
        connect(add).call({}, "note")
    with pytest.raises(CastsFailed, match=text):
        connect(add).cast_many({}, [("note", {})])


def test_metadata_may_be_as_large_as_that(serve: Any, connect: Any) -> None:
    """Just so much passes."""

    def add(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.metadata["x"] = "y" * (MAX_METADATA - 1)
        return proceed(request)

    serve()
    assert len(connect(add).call({}, "who")[2]["x"]) == MAX_METADATA - 1


def test_a_server_refuses_a_request_with_too_much_metadata(
    serve: Any, connect: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its client is: the method does not run, and the caller learns why."""

    def add(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.metadata["x"] = "y" * MAX_METADATA
        return proceed(request)

    serve()
    monkeypatch.setattr("msgbus.interceptors.MAX_METADATA", 10**9)
    with pytest.raises(SerializationError, match="the metadata has"):
        connect(add).call({}, "note")
    assert endpoint.log == []


def test_metadata_is_where_a_stock_peer_does_not_look() -> None:
    """What a stock oslo.messaging peer reads is the same with and without: it ignores the key ``_msgbus``."""
    with_it = Request("m", {"a": 1}, "u", context={"user": "ada"}, hints=Hints(metadata={"token": "x"}))
    without = Request("m", {"a": 1}, "u", context={"user": "ada"}, hints=Hints())
    payloads = [json.loads(json.loads(encode_request(each, JSON))["oslo.message"]) for each in (with_it, without)]
    assert payloads[0].pop("_msgbus") == {"metadata": {"token": "x"}}
    assert payloads[1].pop("_msgbus") == {}
    assert payloads[0] == payloads[1]


def test_a_request_shows_no_secret(serve: Any, connect: Any) -> None:
    """Neither its text nor that of a current request holds context, arguments or metadata."""
    texts: Log = []

    def look(request: InterceptedRequest, proceed: Proceed) -> Any:
        request.metadata["token"] = "secret"
        texts.append(repr(request))
        return proceed(request)

    def look_on_server(request: InterceptedRequest, proceed: Proceed) -> Any:
        texts.extend([repr(request), repr(current_request())])
        return proceed(request)

    serve(look_on_server)
    connect(look).call({"password": "secret"}, "note", value="secret")
    assert len(texts) == 3
    assert "secret" not in " ".join(texts)


def plain(request: InterceptedRequest, proceed: Proceed) -> Any:
    """An interceptor."""
    return proceed(request)


async def asynchronous(request: InterceptedRequest, proceed: Proceed) -> Any:
    """An interceptor that is ``async``."""
    return await proceed(request)


class Interceptor:
    """One that is called as an object is."""

    def __call__(self, request: InterceptedRequest, proceed: Proceed) -> Any:
        return proceed(request)


def yielding(request: InterceptedRequest, proceed: Proceed) -> Iterator[None]:
    """What some libraries would take."""
    yield proceed(request)


@pytest.mark.parametrize(
    ("interceptors", "text"),
    [
        (plain, "interceptors is a list of functions, [function], not <function plain"),
        ("plain", "interceptors is a list of functions"),
        (None, "interceptors is a list of functions"),
        (["plain"], "an interceptor is a function (request, proceed), not 'plain'"),
        ([None], "an interceptor is a function (request, proceed), not None"),
        ([Interceptor], "Interceptor is a class: Interceptor()"),
        ([yielding], "the interceptor yielding yields: call proceed(request)"),
        ([lambda request: None], "is called as"),
        ([plain, asynchronous], "the interceptor asynchronous is async"),
        ([functools.partial(asynchronous)], "the interceptor asynchronous is async"),
    ],
    ids=[
        "function",
        "text",
        "none",
        "a text in it",
        "none in it",
        "class",
        "generator",
        "signature",
        "async",
        "partial",
    ],
)
def test_wrong_interceptors_are_refused_at_once(transport: Transport, interceptors: Any, text: str) -> None:
    """When the client or server is made, and the text says what to do."""
    with pytest.raises(TypeError, match=re.escape(text)):
        get_rpc_client(transport, Target(topic="foo"), interceptors=interceptors)
    with pytest.raises(TypeError, match=re.escape(text)):
        get_rpc_server(transport, Target(topic="foo", server="h1"), [Endpoint()], interceptors=interceptors)


def test_an_async_interceptor_on_threads_names_the_way_out(transport: Transport) -> None:
    """It would never be awaited."""
    with pytest.raises(TypeError, match=r"this server runs on threads.*make it a plain function.*executor='asyncio'"):
        get_rpc_server(transport, Target(topic="foo", server="h1"), [Endpoint()], interceptors=[asynchronous])


@pytest.mark.parametrize("interceptor", [Interceptor(), functools.partial(plain), lambda request, proceed: 5])
def test_whatever_can_be_called_may_be_an_interceptor(serve: Any, connect: Any, interceptor: Any) -> None:
    """Objects, partial functions, lambdas."""
    serve(interceptor)
    assert connect(interceptor).call({}, "note", value=5) == 5


def test_what_an_interceptor_proceeds_with_is_its_request(serve: Any, connect: Any) -> None:
    """Anything else is refused, in words."""

    def wrong(request: InterceptedRequest, proceed: Any) -> Any:
        return proceed(request.args)

    serve(wrong)
    for client in (connect(), connect(wrong), connect(plain, wrong)):
        with pytest.raises(TypeError, match=re.escape("calls proceed(request), with its own request, not dict")):
            client.call({}, "note")


def test_a_coroutine_that_nobody_awaits_is_an_error(serve: Any, connect: Any) -> None:
    """A plain interceptor that calls what is async: nothing of that would run."""

    def wrong(request: InterceptedRequest, proceed: Proceed) -> Any:
        return asynchronous(request, proceed)

    serve(wrong)
    for client in (connect(), connect(wrong)):
        with pytest.raises(RPCDispatcherError, match="returned a coroutine that was not awaited"):
            client.call({}, "note")


def test_method_kind_and_target_cannot_be_changed(serve: Any, connect: Any) -> None:
    """What was asked for stays that."""

    def wrong(request: Any, proceed: Proceed) -> Any:
        request.method = "other"

    serve(wrong)
    with pytest.raises(AttributeError):
        connect().call({}, "note")
    with pytest.raises(AttributeError):
        connect(wrong).call({}, "note")


def test_a_verb_without_a_method_is_refused_before_interceptors_run(connect: Any) -> None:
    """They get requests that make sense."""
    log: Log = []
    client = connect(noting(log))
    with pytest.raises(TypeError, match="the method's name is missing"):
        client.call({})
    with pytest.raises(SerializationError):
        client.call({}, 5)
    assert log == []


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("alive", [True, False], ids=["connected", "cut off"])
def test_a_request_is_accepted_before_interceptors_as_its_policy_says(
    transport: Transport, endpoint: Endpoint, policy: str, alive: bool
) -> None:
    """Under at_most_once before them, and if that fails none of them runs; under at_least_once after."""
    outcomes: Log = []

    def look(request: InterceptedRequest, proceed: Proceed) -> Any:
        outcomes.append(delivery.outcome)

    processor = Processor(transport, "h1", RPCDispatcher([endpoint]), None, [look])
    executor: Executor[Any] = Executor(1, processor.process, "test", transport.loop)
    processor.start(executor)
    delivery = Handed(Request("note", {}, "u", hints=Hints(policy=policy)), alive=alive)
    processor.process(delivery)
    assert processor.wait(0) == 0
    if policy == "at_most_once":
        assert outcomes == (["accepted"] if alive else [])
    else:
        assert outcomes == [None]
    assert delivery.outcome == "accepted"
