"""The context in which a request runs: what one request sets, no other sees."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import (
    DeadLetter,
    ExplicitRPCAccessPolicy,
    NoOpSerializer,
    RPCClient,
    RPCServer,
    Target,
    Transport,
    current_request,
    expected_exceptions,
    expose,
    get_rpc_client,
    get_rpc_server,
    rpc,
)
from msgbus.deadline import current
from tests.support import EVENT_TIMEOUT, Awaited, new_conf, new_transport, new_url

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


class Endpoint(Awaited):
    """Sets who is served, and says who is, one method for each way in which a request may run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def login(self, ctxt: object, name: str = "alice") -> None:
        WHO.set(name)
        self.came.release()

    def whoami(self, ctxt: object) -> str:
        self.note(WHO.get())
        return WHO.get()

    def note(self, value: Any) -> None:
        self.seen.append(value)
        self.came.release()

    def refuse(self, ctxt: object) -> None:
        WHO.set("alice")
        raise RuntimeError("refused")

    @expected_exceptions(LookupError)
    def expects(self, ctxt: object) -> None:
        WHO.set("alice")
        raise LookupError("expected")

    def fail_once(self, ctxt: object, value: dict[str, Any]) -> None:
        self.note((WHO.get(), dict(value)))
        WHO.set("alice")
        value["changed"] = True
        if len(self.seen) == 1:
            raise RuntimeError("once")

    def steps(self, ctxt: object, name: str) -> Iterator[str]:
        yield WHO.get()
        token = WHO.set(name)
        try:
            yield WHO.get()
            yield WHO.get()
        finally:
            WHO.reset(token)
            self.note(WHO.get())

    def precision(self, ctxt: object, to: int | None = None) -> int:
        if to is not None:
            decimal.getcontext().prec = to
        return decimal.getcontext().prec

    def in_a_thread(self, ctxt: object) -> str:
        WHO.set("alice")
        found: Future[str] = Future()
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(lambda: found.set_result(WHO.get()),)).start()
        return found.result(EVENT_TIMEOUT)

    def in_a_loop(self, ctxt: object) -> str:
        WHO.set("alice")

        async def ask() -> str:
            return await asyncio.to_thread(WHO.get)

        return asyncio.run(ask())


@pytest.fixture
def transport(retries_at_once: None) -> Iterator[Transport]:
    """A transport in memory whose servers run everything on one thread, so that all that is left there is found."""
    transport = new_transport(executor_thread_pool_size=1)
    yield transport
    transport.cleanup()


@pytest.fixture
def endpoint() -> Endpoint:
    """What the server runs."""
    return Endpoint()


@pytest.fixture
def serve(transport: Transport, endpoint: Endpoint) -> Iterator[Callable[..., RPCServer]]:
    """Starts a server."""
    servers: list[RPCServer] = []

    def start(**options: Any) -> RPCServer:
        server = get_rpc_server(transport, Target(topic="foo", server="h1"), [endpoint], **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        assert server.wait(EVENT_TIMEOUT) == 0


@pytest.fixture
def client(transport: Transport) -> RPCClient:
    """A client of the server."""
    return get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)


def _by_call(client: RPCClient, endpoint: Endpoint) -> None:
    client.call({}, "login")


def _by_cast(client: RPCClient, endpoint: Endpoint) -> None:
    client.cast({}, "login")
    endpoint.wait()


def _by_fanout(client: RPCClient, endpoint: Endpoint) -> None:
    client.fanout_cast({}, "login")
    endpoint.wait()


def _by_at_least_once(client: RPCClient, endpoint: Endpoint) -> None:
    client.prepare(delivery="at_least_once").call({}, "login")


def _by_exception(client: RPCClient, endpoint: Endpoint) -> None:
    with pytest.raises(RuntimeError):
        client.call({}, "refuse")


def _by_expected_exception(client: RPCClient, endpoint: Endpoint) -> None:
    with pytest.raises(LookupError):
        client.call({}, "expects")


def _by_stream(client: RPCClient, endpoint: Endpoint) -> None:
    assert list(client.multicall({}, "steps", name="alice")) == ["nobody", "alice", "alice"]


def _by_last_item(client: RPCClient, endpoint: Endpoint) -> None:
    assert client.call({}, "steps", name="alice") == "alice"


@pytest.mark.parametrize(
    "leave",
    [
        _by_call,
        _by_cast,
        _by_fanout,
        _by_at_least_once,
        _by_exception,
        _by_expected_exception,
        _by_stream,
        _by_last_item,
    ],
)
def test_what_a_request_sets_no_other_sees(
    serve: Callable[..., RPCServer],
    client: RPCClient,
    endpoint: Endpoint,
    leave: Callable[[RPCClient, Endpoint], None],
) -> None:
    """A context variable that a request has set is as before for the next one on that thread, whatever its kind."""
    serve()
    leave(client, endpoint)
    assert client.call({}, "whoami") == "nobody"
    assert list(client.multicall({}, "whoami")) == ["nobody"]
    endpoint.seen.clear()
    endpoint.came = threading.Semaphore(0)
    for cast in (client.cast, client.fanout_cast):
        cast({}, "whoami")
    client.prepare(delivery="at_least_once").cast({}, "whoami")
    endpoint.wait(3)
    assert set(endpoint.seen) == {"nobody"}


def test_a_generator_keeps_its_context_to_its_end(
    serve: Callable[..., RPCServer], client: RPCClient, endpoint: Endpoint
) -> None:
    """Steps and `finally` of a generator run in one context: a token may be reset there, also where a client leaves."""
    serve()
    with client.multicall({}, "steps", name="alice") as items:
        assert [next(items), next(items)] == ["nobody", "alice"]
    endpoint.wait()
    assert endpoint.seen == ["nobody"]


def test_streams_of_one_server_do_not_mix(transport: Transport, endpoint: Endpoint, client: RPCClient) -> None:
    """Two generators that run at the same time, on two threads, have a context each."""
    transport.conf.set_override("executor_thread_pool_size", 2)
    server = get_rpc_server(transport, Target(topic="foo", server="h1"), [endpoint])
    server.start()
    first, second = (client.multicall({}, "steps", name=name) for name in ("alice", "bob"))
    assert [(next(first), next(second)) for _ in range(3)] == [("nobody", "nobody"), *[("alice", "bob")] * 2]
    first.close()
    second.close()
    assert server.wait(EVENT_TIMEOUT) == 0


def test_a_repeated_cast_starts_afresh(serve: Callable[..., RPCServer], client: RPCClient, endpoint: Endpoint) -> None:
    """A cast that raised and is run again sees nothing of its first run: neither the context nor changed arguments."""
    serve()
    client.prepare(delivery="at_least_once").cast({}, "fail_once", value={"a": 1})
    endpoint.wait(2)
    assert endpoint.seen == [("nobody", {"a": 1})] * 2


def test_a_server_has_the_context_of_its_start(transport: Transport, endpoint: Endpoint, client: RPCClient) -> None:
    """What was set when the server was started holds for each request; what was set later does not."""
    server = get_rpc_server(transport, Target(topic="foo", server="h1"), [endpoint])

    def start(name: str) -> None:
        WHO.set(name)
        server.start()
        WHO.set("set later")

    contextvars.copy_context().run(start, "the operator")
    assert client.call({}, "whoami") == "the operator"
    client.call({}, "login")
    assert list(client.multicall({}, "steps", name="bob")) == ["the operator", "bob", "bob"]
    server.stop()
    assert server.wait(EVENT_TIMEOUT) == 0
    contextvars.copy_context().run(start, "who started it again")
    assert client.call({}, "whoami") == "who started it again"
    assert server.wait(EVENT_TIMEOUT) == 0


def test_a_server_started_by_a_request_inherits_no_deadline(transport: Transport, client: RPCClient) -> None:
    """A method may start another server: the deadline of its own request is not that server's."""
    deadlines: list[float | None] = []

    class Inner:
        def look(self, ctxt: object) -> None:
            deadlines.append(current.get())
            done.set()

    class Outer:
        def start_one(self, ctxt: object) -> None:
            inner.start()

    done = threading.Event()
    inner = get_rpc_server(transport, Target(topic="inner", server="h1"), [Inner()])
    outer = get_rpc_server(transport, Target(topic="foo", server="h1"), [Outer()])
    outer.start()
    client.call({}, "start_one")
    get_rpc_client(transport, Target(topic="inner")).cast({}, "look")
    assert done.wait(EVENT_TIMEOUT)
    assert deadlines == [None]
    assert inner.wait(EVENT_TIMEOUT) == outer.wait(EVENT_TIMEOUT) == 0


@pytest.mark.parametrize("used_before", [False, True])
def test_decimal_contexts_are_each_requests_own(
    transport: Transport, endpoint: Endpoint, client: RPCClient, used_before: bool
) -> None:
    """The precision that a method sets is that of its request, also where the program had used `decimal` before."""
    server = get_rpc_server(transport, Target(topic="foo", server="h1"), [endpoint])

    def start() -> None:
        if used_before:
            decimal.getcontext().prec = 31
        server.start()

    contextvars.Context().run(start)
    usual = 31 if used_before else decimal.DefaultContext.prec
    assert [client.call({}, "precision", to=to) for to in (None, 4, None)] == [usual, 4, usual]
    assert server.wait(EVENT_TIMEOUT) == 0


class _Naming(NoOpSerializer):
    """Sets who is served, as a service's serializer does that makes a context object of its own."""

    def deserialize_context(self, ctxt: dict[str, Any]) -> Any:
        WHO.set(ctxt.get("user", WHO.get()))
        return ctxt


def test_a_method_sees_what_its_serializer_has_set(
    serve: Callable[..., RPCServer], client: RPCClient, endpoint: Endpoint
) -> None:
    """The serializer runs in the context of the request, and so does each step of a generator."""
    serve(serializer=_Naming())
    assert client.call({"user": "ada"}, "whoami") == "ada"
    assert client.call({}, "whoami") == "nobody"
    assert list(client.multicall({"user": "ada"}, "steps", name="bob")) == ["ada", "bob", "bob"]
    assert client.call({}, "whoami") == "nobody"


def test_access_policies_run_in_the_requests_context(transport: Transport, client: RPCClient) -> None:
    """What an access policy sets the method sees, and the next request does not."""

    class Policy(ExplicitRPCAccessPolicy):
        def is_allowed(self, endpoint: object, method: str) -> bool:
            WHO.set("allowed")
            return super().is_allowed(endpoint, method)

    class Exposing:
        @expose
        def first(self, ctxt: object) -> str:
            return WHO.get()

        @expose
        def second(self, ctxt: object) -> str:
            return WHO.get()

    server = get_rpc_server(transport, Target(topic="foo", server="h1"), [Exposing()], access_policy=Policy)
    server.start()
    assert client.call({}, "first") == "allowed"
    assert client.call({}, "first") == "nobody"  # Whether it is allowed is known already.
    assert client.call({}, "second") == "allowed"
    assert server.wait(EVENT_TIMEOUT) == 0


def test_the_hook_for_dead_letters_runs_in_the_context_of_the_last_try(
    serve: Callable[..., RPCServer], client: RPCClient, endpoint: Endpoint
) -> None:
    """The hook sees what the method has set, and leaves nothing to the next request."""
    seen: list[str] = []

    def hook(letter: DeadLetter) -> None:
        seen.append(WHO.get())
        WHO.set("the hook")
        endpoint.came.release()

    serve(on_dead_letter=hook)
    client.prepare(delivery="at_least_once").cast({}, "refuse")
    endpoint.wait()
    assert seen == ["alice"]
    assert client.call({}, "whoami") == "nobody"


@pytest.mark.parametrize("method", ["in_a_thread", "in_a_loop"])
def test_a_context_can_be_taken_along(serve: Callable[..., RPCServer], client: RPCClient, method: str) -> None:
    """A thread that a method starts in a copy of its context has it, and so has a loop that it runs."""
    serve()
    assert client.call({}, method) == "alice"


# The classic API


class Manager:
    """Served by a consumer; a notification's callback too."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.came = threading.Semaphore(0)

    def whoami(self, context: Any, name: str | None = None) -> str:
        before = WHO.get()
        if name is not None:
            WHO.set(name)
        return before

    def steps(self, context: Any) -> Iterator[str]:
        token = WHO.set("alice")
        yield WHO.get()
        WHO.reset(token)
        yield WHO.get()

    def ask(self, context: Any) -> list[Any]:
        request = current_request()
        return [request.method, request.topic, request.server, request.context]

    def on_message(self, message: dict[str, Any]) -> None:
        request = current_request()
        self.seen.append((WHO.get(), request.method, request.topic, request.context, request.time_left))
        WHO.set("alice")
        self.came.release()


@pytest.fixture
def manager() -> Iterator[Manager]:
    """What a consumer of the classic API runs, on one thread."""
    rpc.init(new_conf(transport_url=new_url(), executor_thread_pool_size=1))
    manager = Manager()
    connection = rpc.create_connection()
    for topic, fanout in (("foo", False), ("foo.h1", False), ("foo", True)):
        connection.create_consumer(topic, manager, fanout)
    connection.join_consumer_pool(manager.on_message, "pool", "notifications.info")
    connection.consume_in_thread()
    yield manager
    connection.close()
    rpc.cleanup()


def test_consumers_of_the_classic_api(manager: Manager) -> None:
    """Their requests leave nothing to each other either, and know what they are."""
    for topic in ("foo", "foo.h1"):
        for name in ("alice", None):
            message = {"method": "whoami", "args": {"name": name}}
            assert rpc.call({}, topic, message, timeout=EVENT_TIMEOUT) == "nobody"
        assert list(rpc.multicall({}, topic, {"method": "steps"}, timeout=EVENT_TIMEOUT)) == ["alice", "nobody"]
    found = rpc.call({"user": "ada"}, "foo.h1", {"method": "ask"}, timeout=EVENT_TIMEOUT)
    assert found == ["ask", "foo", "h1", {"user": "ada"}]


def test_callbacks_of_notifications(manager: Manager) -> None:
    """A notification's callback has a context of its own, and knows the topic and the sender's context."""
    for _ in range(2):
        rpc.notify({"user": "ada"}, "notifications.info", {"event_type": "started"})
        assert manager.came.acquire(timeout=EVENT_TIMEOUT)
    assert manager.seen == [("nobody", "", "notifications.info", {"user": "ada"}, None)] * 2
