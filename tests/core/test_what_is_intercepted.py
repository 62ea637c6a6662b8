"""What passes interceptors besides the verbs: typed clients, validated methods, questions to all servers, `stats`.

tests/aio/test_what_is_intercepted.py has the same for asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec
import pytest

import msgbus
from msgbus import (
    AccessDenied,
    InterceptedRequest,
    InvalidArguments,
    Proceed,
    RPCClient,
    RPCServer,
    Target,
    Transport,
    current_request,
    get_rpc_client,
    get_rpc_server,
)
from msgbus.conformance.waiting import until
from tests.support import EVENT_TIMEOUT, new_transport

Log = list[Any]


class Image(msgspec.Struct):
    name: str
    width: int = 1


class Images:
    """What the servers run."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def widen(self, ctxt: Any, image: Image, by: int) -> Image:
        return Image(image.name, image.width + by)

    def parts(self, ctxt: Any, image: Image) -> Iterator[Image]:
        for number in range(2):
            yield Image(f"{image.name}{number}")

    def note(self, ctxt: Any, image: Image) -> None:
        self.noted.append(image.name)

    def metadata(self, ctxt: Any) -> Any:
        return current_request().metadata


class Api(Protocol):
    def widen(self, image: Image, by: int) -> Image: ...

    def parts(self, image: Image) -> Iterator[Image]: ...

    @msgbus.one_way
    def note(self, image: Image) -> None: ...


@pytest.fixture
def transport() -> Iterator[Transport]:
    """A transport in memory."""
    transport = new_transport()
    yield transport
    transport.cleanup()


@pytest.fixture
def images() -> Images:
    """What the servers run."""
    return Images()


@pytest.fixture
def serve(transport: Transport, images: Images) -> Iterator[Callable[..., RPCServer]]:
    """Starts a server with these interceptors, which validates."""
    servers: list[RPCServer] = []

    def start(*interceptors: Any, name: str = "h1") -> RPCServer:
        server = get_rpc_server(
            transport, Target(topic="foo", server=name), [images], interceptors=interceptors, validate=True
        )
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
        assert server.wait(EVENT_TIMEOUT) == 0


def connect(transport: Transport, *interceptors: Any) -> RPCClient:
    """A client with these interceptors."""
    return get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT, interceptors=interceptors)


def noting(log: Log) -> Callable[[InterceptedRequest, Proceed], Any]:
    """An interceptor that notes what passes, and sends metadata."""

    def intercept(request: InterceptedRequest, proceed: Proceed) -> Any:
        log.append((request.kind, request.method, dict(request.args)))
        request.metadata["token"] = "t"
        return proceed(request)

    return intercept


def test_a_typed_client_passes_interceptors(transport: Transport, serve: Any, images: Images) -> None:
    """Its calls, streams and casts do; interceptors see arguments as plain data, and results as declared."""
    log: Log = []
    results: Log = []

    def note_result(request: InterceptedRequest, proceed: Proceed) -> Any:
        results.append(proceed(request))
        return results[-1]

    serve()
    api = connect(transport, noting(log), note_result).proxy(Api)
    assert api.widen(image=Image("a"), by=2) == Image("a", 3)
    assert list(api.parts(image=Image("b"))) == [Image("b0"), Image("b1")]
    api.note(image=Image("c"))
    until(lambda: images.noted == ["c"], "the cast has run")
    assert log == [
        ("call", "widen", {"image": {"name": "a", "width": 1}, "by": 2}),
        ("multicall", "parts", {"image": {"name": "b", "width": 1}}),
        ("cast", "note", {"image": {"name": "c", "width": 1}}),
    ]
    assert results[0] == Image("a", 3)


def test_arguments_are_checked_inside_the_interceptors(transport: Transport, serve: Any) -> None:
    """Interceptors of a server see what has come, may mend it, and see the error for what does not fit."""
    log: Log = []

    def mend(request: InterceptedRequest, proceed: Proceed) -> Any:
        log.append(request.args["by"])
        if request.args["by"] == "two":
            request.args["by"] = 2
        try:
            return proceed(request)
        except InvalidArguments as exc:
            log.append(type(exc))
            raise

    serve(mend)
    client = connect(transport)
    assert client.call({}, "widen", image={"name": "a"}, by="two") == {"name": "a", "width": 3}
    with pytest.raises(InvalidArguments):
        client.call({}, "widen", image={"name": "a"}, by="three")
    assert log == ["two", "three", InvalidArguments]


def test_gather_passes_the_interceptors_of_servers_only(transport: Transport, serve: Any) -> None:
    """A question to all servers is a call for each of them, and its client's interceptors do not see it."""
    of_client: Log = []
    of_server: Log = []
    serve(noting(of_server), name="h1")
    serve(noting(of_server), name="h2")
    client = connect(transport, noting(of_client))
    answers = {answer.server: answer.result() for answer in client.gather({}, "metadata")}
    assert answers == {"h1": {"token": "t"}, "h2": {"token": "t"}}
    assert of_server == [("call", "metadata", {})] * 2
    assert of_client == []


def test_what_a_gather_needs_to_be_let_in_is_in_its_context(transport: Transport, serve: Any) -> None:
    """An interceptor of a server refuses one without a token, and that is the answer of this server."""

    def authenticate(request: InterceptedRequest, proceed: Proceed) -> Any:
        if request.context.get("token") != "t":
            raise AccessDenied("no token")
        return proceed(request)

    serve(authenticate)
    client = connect(transport)
    (refused,) = client.gather({}, "metadata")
    assert isinstance(refused.error, AccessDenied)
    (answer,) = client.gather({"token": "t"}, "metadata")
    assert answer.result() == {}


@pytest.mark.parametrize("method", ["ping", "describe", "stats"])
def test_what_msgbus_answers_itself_is_not_intercepted_on_the_server(
    transport: Transport, serve: Any, method: str
) -> None:
    """The interceptors of a client see such a call, as it is one; those of the server do not."""
    of_client: Log = []
    of_server: Log = []
    serve(noting(of_server))
    client = connect(transport, noting(of_client))
    assert client.prepare(namespace="msgbus").call({}, method)
    assert len(client.ping()) == 1
    assert of_client == [("call", method, {})]
    assert of_server == []


def test_stats_count_what_interceptors_answer(transport: Transport, serve: Any) -> None:
    """An answer without the method counts as finished, an error as failed, and a denied access as refused."""

    def answer(request: InterceptedRequest, proceed: Proceed) -> Any:
        if request.context.get("do") == "fail":
            raise KeyError("from the interceptor")
        if request.context.get("do") == "deny":
            raise AccessDenied("denied")
        return {}

    serve(answer)
    client = connect(transport)
    assert client.call({}, "metadata") == {}
    with pytest.raises(KeyError):
        client.call({"do": "fail"}, "metadata")
    with pytest.raises(AccessDenied):
        client.call({"do": "deny"}, "metadata")
    client.cast({}, "metadata")

    def stats() -> Any:
        return client.prepare(namespace="msgbus").call({}, "stats")

    expected = {"begun": 3, "finished": 2, "failed": 1, "cancelled": 0}
    until(lambda: stats()["methods"].get("metadata") == expected, "all are counted")
    assert stats()["refused"] == 1


@pytest.mark.parametrize("target", [Target(namespace="msgbus"), Target(legacy_namespaces=["msgbus"])])
def test_no_method_of_the_user_can_be_called_past_interceptors(transport: Transport, target: Target) -> None:
    """An endpoint in the namespace of msgbus is refused where there are interceptors, which may ask for tokens."""

    class Hidden(Images):
        pass

    endpoint: Any = Hidden()
    endpoint.target = target
    named = Target(topic="images", server="one")
    with pytest.raises(TypeError, match="interceptors would not see its requests"):
        get_rpc_server(transport, named, [endpoint], interceptors=[noting([])])
    server = get_rpc_server(transport, named, [endpoint])
    RPCServer(transport, named, server.dispatcher)
    plain = get_rpc_server(transport, named, [Images()])
    RPCServer(transport, named, plain.dispatcher, interceptors=[noting([])])
