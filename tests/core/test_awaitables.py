"""What is `async` is refused: no work is dropped that counts as done."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from msgbus import (
    DeadLetter,
    DefaultRPCAccessPolicy,
    ExplicitRPCAccessPolicy,
    LegacyRPCAccessPolicy,
    NoOpSerializer,
    RPCDispatcher,
    RPCDispatcherError,
    Target,
    Transport,
    expected_exceptions,
    expose,
    get_rpc_client,
    get_rpc_server,
    rpc,
)
from msgbus.awaitables import is_async
from msgbus.conformance.waiting import until
from msgbus.rpc.dispatcher import ProxyDispatcher
from tests.support import EVENT_TIMEOUT, new_conf, new_transport, new_url


async def work(*args: Any, **kwargs: Any) -> None:
    """Never run."""
    pytest.fail("it ran")


async def work_items(*args: Any, **kwargs: Any) -> AsyncIterator[int]:
    """Never run."""
    yield 1


class Callable_:
    """An object that is called like a function, and is async."""

    async def __call__(self, ctxt: object) -> None:
        """Never run."""


class Method:
    work = work


class Items:
    work = work_items


class Static:
    work = staticmethod(work)


class OfClass:
    work = classmethod(work)


class Partial:
    work = functools.partial(work, 1)


class PartialMethod:
    work = functools.partialmethod(work, 1)


class Cached:
    work = functools.lru_cache(work)


class Object:
    work = Callable_()


class Expecting:
    work = expected_exceptions(ValueError)(work)


class Exposed:
    work = expose(work)


class Inherits(Method):
    pass


class Attribute:
    def __init__(self) -> None:
        self.work = work


class Slot:
    __slots__ = ("work",)

    def __init__(self) -> None:
        self.work = Callable_()


class Mocked:
    def __init__(self) -> None:
        self.work = mock.AsyncMock()


MODULE = types.ModuleType("a_module")
MODULE.work = work  # type: ignore[attr-defined]

KINDS = [
    Method(),
    Items(),
    Static(),
    OfClass(),
    Partial(),
    PartialMethod(),
    Cached(),
    Object(),
    Expecting(),
    Exposed(),
    Inherits(),
    Attribute(),
    Slot(),
    Mocked(),
    MODULE,
]


def name_of(endpoint: object) -> str:
    """What a test is called."""
    return endpoint.__name__ if isinstance(endpoint, types.ModuleType) else type(endpoint).__name__


@pytest.fixture
def transport() -> Iterator[Transport]:
    """A transport in memory."""
    transport = new_transport()
    yield transport
    transport.cleanup()


@pytest.mark.parametrize("endpoint", KINDS, ids=name_of)
def test_async_methods_are_refused_when_the_server_is_made(transport: Transport, endpoint: object) -> None:
    """The error names class and method, and what to do; the classic API refuses likewise."""
    with pytest.raises(TypeError, match=rf"{name_of(endpoint)}\.work is async.*plain.*access policy"):
        get_rpc_server(transport, Target(topic="foo", server="h1"), [object(), endpoint], "threading")
    with pytest.raises(TypeError, match=r"work is async"):
        RPCDispatcher([]).add_endpoint(endpoint)
    with pytest.raises(TypeError, match=r"work is async"):
        rpc.RpcDispatcher([endpoint])
    with pytest.raises(TypeError, match=r"work is async"):
        ProxyDispatcher(endpoint)


class Mixed:
    """Has what may not be called from outside, and what may."""

    evaluated = False

    async def _private(self, ctxt: object) -> None: ...

    async def hidden(self, ctxt: object) -> None: ...

    @property
    async def a_property(self) -> None:
        Mixed.evaluated = True

    @property
    def plain_property(self) -> Any:
        Mixed.evaluated = True
        return work

    @functools.cached_property
    def cached(self) -> Any:
        Mixed.evaluated = True
        return work

    class Inner:
        """A class is called to make an object."""

        async def __call__(self) -> None: ...

    @expose
    def plain(self, ctxt: object) -> str:
        return "plain"


class _Hiding(DefaultRPCAccessPolicy):
    def is_allowed(self, endpoint: object, method: str) -> bool:
        return method != "hidden" and super().is_allowed(endpoint, method)


@pytest.mark.parametrize("policy", [ExplicitRPCAccessPolicy, _Hiding])
def test_what_cannot_be_called_may_be_async(policy: type[DefaultRPCAccessPolicy]) -> None:
    """Private methods and those that the access policy hides are left alone, and no property is evaluated."""
    RPCDispatcher([Mixed()], access_policy=policy)
    assert not Mixed.evaluated
    with pytest.raises(TypeError, match=r"Mixed\.hidden is async"):
        RPCDispatcher([Mixed()])
    with pytest.raises(TypeError, match=r"Mixed\.(_private|hidden) is async"):
        RPCDispatcher([Mixed()], access_policy=LegacyRPCAccessPolicy)
    assert not Mixed.evaluated


def test_what_is_not_async() -> None:
    """Plain functions, classes and mocks are not."""
    plain = [lambda: None, functools.partial(print), print, Mixed.Inner, mock.MagicMock(), object(), None, 5]
    assert not [one for one in plain if is_async(one)]


async def hook(letter: DeadLetter) -> None:
    """Never run."""


class _AsyncSerializer(NoOpSerializer):
    async def deserialize_context(self, ctxt: dict[str, Any]) -> Any:
        return ctxt


class _AsyncPolicy(DefaultRPCAccessPolicy):
    async def is_allowed(self, endpoint: object, method: str) -> bool:  # type: ignore[override]  # on purpose
        return False


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"on_dead_letter": hook}, "on_dead_letter"),
        ({"serializer": _AsyncSerializer()}, "deserialize_context of _AsyncSerializer"),
        ({"access_policy": _AsyncPolicy}, "is_allowed of _AsyncPolicy"),
    ],
)
def test_nothing_else_that_the_server_calls_may_be_async(
    transport: Transport, options: dict[str, Any], named: str
) -> None:
    """A hook would never run, a serializer give a coroutine to the method, and an access policy allow everything."""
    with pytest.raises(TypeError, match=f"{named} is async"):
        get_rpc_server(transport, Target(topic="foo", server="h1"), [object()], **options)


def test_a_clients_serializer_may_not_be_async(transport: Transport) -> None:
    """A client refuses it too."""
    with pytest.raises(TypeError, match="deserialize_context of _AsyncSerializer is async"):
        get_rpc_client(transport, Target(topic="foo"), serializer=_AsyncSerializer())


# What a plain method returns


class Awaitable:
    """Has to be awaited, and is no coroutine."""

    def __await__(self) -> Any:
        yield


class Asynchronous:
    """Can be iterated over, but only asynchronously."""

    def __aiter__(self) -> Any:
        return self


@types.coroutine
def old_style() -> Any:
    """A coroutine of the old kind."""
    yield


class Returning:
    """Returns, from plain methods, what would have to be awaited."""

    def __init__(self) -> None:
        self.came = threading.Semaphore(0)

    def coroutine(self, ctxt: object) -> Any:
        self.came.release()
        return work()

    def items(self, ctxt: object) -> Any:
        self.came.release()
        return work_items()

    def old(self, ctxt: object) -> Any:
        self.came.release()
        return old_style()

    def future(self, ctxt: object) -> Any:
        self.came.release()
        loop = asyncio.new_event_loop()
        try:
            return loop.create_future()
        finally:
            loop.close()

    def other(self, ctxt: object) -> Any:
        self.came.release()
        return Awaitable()

    def iterable(self, ctxt: object) -> Any:
        self.came.release()
        return Asynchronous()

    def yields(self, ctxt: object) -> Any:
        self.came.release()
        yield work()

    def __getattr__(self, name: str) -> Any:
        if name != "dynamic":
            raise AttributeError(name)
        self.came.release()
        return work

    def plain(self, ctxt: object) -> list[int]:
        return [1]


METHODS = ["coroutine", "items", "old", "future", "other", "iterable", "yields", "dynamic"]


class Served:
    """A server with its client, and what was given up."""

    def __init__(self, transport: Transport, **options: Any) -> None:
        self.letters: list[DeadLetter] = []
        self.given_up = threading.Event()
        self.endpoint = Returning()
        self.server = get_rpc_server(
            transport, Target(topic="foo", server="h1"), [self.endpoint], on_dead_letter=self._hook, **options
        )
        self.server.start()
        self.client = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)

    def _hook(self, letter: DeadLetter) -> None:
        self.letters.append(letter)
        self.given_up.set()

    def end(self) -> None:
        """Stop it, and have Python warn of what was never awaited."""
        assert self.server.wait(EVENT_TIMEOUT) == 0
        gc.collect()


@pytest.fixture(params=[None, NoOpSerializer, "other"])
def served(request: pytest.FixtureRequest, transport: Transport) -> Iterator[Served]:
    """With and without a serializer of the service's own."""

    class Other(NoOpSerializer):
        def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
            return str(entity)

    kinds: dict[Any, Any] = {None: None, NoOpSerializer: NoOpSerializer(), "other": Other()}
    served = Served(transport, serializer=kinds[request.param])
    yield served
    served.end()


@pytest.mark.parametrize("method", METHODS)
def test_a_call_whose_method_returns_an_awaitable_is_an_error(served: Served, method: str) -> None:
    """The caller learns that nothing has run, and why; nothing is left that was never awaited."""
    with pytest.raises(RPCDispatcherError, match=rf"method '{method}' (returned|yielded).*does not await"):
        served.client.call({}, method)
    with pytest.raises(RPCDispatcherError, match=rf"method '{method}' (returned|yielded).*does not await"):
        list(served.client.multicall({}, method))


def test_the_error_says_what_was_returned(served: Served) -> None:
    """A coroutine is called one."""
    with pytest.raises(RPCDispatcherError, match="'coroutine' returned a coroutine"):
        served.client.call({}, "coroutine")
    with pytest.raises(RPCDispatcherError, match="'yields' yielded a coroutine"):
        served.client.call({}, "yields")
    with pytest.raises(RPCDispatcherError, match="'items' returned an async generator"):
        served.client.call({}, "items")


@pytest.mark.parametrize("method", METHODS)
def test_a_cast_whose_method_returns_an_awaitable_failed(
    served: Served, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Under at_most_once that is logged as an error; under at_least_once it goes to the dead letters, unrepeated."""
    caplog.set_level(logging.ERROR, "msgbus")
    served.client.cast({}, method)
    served.endpoint.came.acquire(timeout=EVENT_TIMEOUT)
    assert served.client.call({}, "plain")
    served.client.prepare(delivery="at_least_once").cast({}, method)
    assert served.given_up.wait(EVENT_TIMEOUT)
    (letter,) = served.letters
    assert letter.attempts == 1
    assert "does not await, so it has not run" in letter.reason

    def both_logged() -> bool:
        return len([record for record in caplog.records if "does not await" in record.getMessage()]) == 2

    until(both_logged, "two lines in the log", EVENT_TIMEOUT)


def test_a_hook_that_returns_a_coroutine(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """Where it was hidden that the hook is async, the log says that it did not run."""

    def sly(letter: DeadLetter) -> Any:
        return hook(letter)

    server = get_rpc_server(transport, Target(topic="foo", server="h1"), [object()], on_dead_letter=sly)
    server.start()
    get_rpc_client(transport, Target(topic="foo"), delivery="at_least_once").cast({}, "nothing")
    server.stop()
    assert server.wait(EVENT_TIMEOUT) == 0
    assert "the hook returned a coroutine, which msgbus does not await" in caplog.text
    assert "return a plain value" in caplog.text
    gc.collect()


def test_a_policy_that_returns_a_coroutine_allows_nothing(transport: Transport) -> None:
    """It is true as a value, and counts as no permission all the same."""

    class Sly(DefaultRPCAccessPolicy):
        def is_allowed(self, endpoint: object, method: str) -> bool:
            async def decide() -> bool:
                return False

            return decide()  # type: ignore[return-value]  # on purpose

    server = get_rpc_server(transport, Target(topic="foo", server="h1"), [Returning()], access_policy=Sly)
    server.start()
    client = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    with pytest.raises(RPCDispatcherError, match="access policy returned a coroutine"):
        client.call({}, "plain")
    assert server.wait(EVENT_TIMEOUT) == 0
    gc.collect()


# The classic API


@pytest.fixture
def connection() -> Iterator[rpc.Connection]:
    """A connection of the classic API."""
    rpc.init(new_conf(transport_url=new_url()))
    connection = rpc.create_connection()
    yield connection
    connection.close()
    rpc.cleanup()


class AsyncDispatch:
    async def dispatch(self, ctxt: Any, version: str, method: str, namespace: str | None = None, **kwargs: Any) -> Any:
        """Never run."""


class HiddenDispatch:
    def dispatch(self, ctxt: Any, version: str, method: str, namespace: str | None = None, **kwargs: Any) -> Any:
        return work()


async def callback(message: dict[str, Any]) -> None:
    """Never run."""


class AsyncEntities:
    async def serialize_entity(self, ctxt: Any, entity: Any) -> Any: ...


class AsyncHook:
    async def initialize_service_hook(self, service: Any) -> None: ...


@pytest.mark.parametrize(
    "use",
    [
        lambda conn: conn.create_consumer("foo", Method()),
        lambda conn: conn.create_consumer("foo", AsyncDispatch()),
        lambda conn: conn.create_worker("foo", Method(), "pool"),
        lambda conn: conn.join_consumer_pool(callback, "pool", "foo"),
        lambda conn: rpc.RpcDispatcher([object()], serializer=AsyncEntities()),
        lambda conn: rpc.RpcProxy("foo", "1.0", serializer=AsyncEntities()),
        lambda conn: rpc.Service("h1", "foo", AsyncHook()).start(),
    ],
    ids=["consumer", "dispatch", "worker", "callback", "dispatcher", "proxy", "service"],
)
def test_the_classic_api_refuses_what_is_async(
    connection: rpc.Connection, use: Callable[[rpc.Connection], object]
) -> None:
    """Proxies, workers, callbacks, serializers and hooks are refused when they are given."""
    with pytest.raises(TypeError, match="is async"):
        use(connection)


def test_a_proxy_that_returns_a_coroutine(connection: rpc.Connection) -> None:
    """A `dispatch` of somebody's own that returns one is an error for the caller."""
    connection.create_consumer("foo", HiddenDispatch())
    connection.consume_in_thread()
    with pytest.raises(RPCDispatcherError, match="'work' returned a coroutine"):
        rpc.call({}, "foo", {"method": "work"}, timeout=EVENT_TIMEOUT)
    connection.close()
    gc.collect()


def test_a_callback_that_returns_a_coroutine(connection: rpc.Connection, caplog: pytest.LogCaptureFixture) -> None:
    """A notification whose callback turns out to be async is logged as one that raised."""
    came = threading.Event()

    def sly(message: dict[str, Any]) -> Any:
        came.set()
        return callback(message)

    connection.join_consumer_pool(sly, "pool", "foo")
    connection.consume_in_thread()
    rpc.notify({}, "foo", {"a": 1})
    assert came.wait(EVENT_TIMEOUT)
    connection.close()
    assert "the callback returned a coroutine" in caplog.text
    gc.collect()
