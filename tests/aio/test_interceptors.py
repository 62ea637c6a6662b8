"""Interceptors that are ``async``: of clients for asyncio, and of servers that run requests on an event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

import msgbus
from msgbus import CastsFailed, InterceptedRequest, RPCDispatcherError, aio, expected_exceptions
from msgbus.aio import AsyncInterceptor, AsyncProceed
from msgbus.method_runner import NotAccepted
from tests.aio.support import SERVER, TOPIC, Bus, Service, conf_with, on_loop, two_servers, until
from tests.support import EVENT_TIMEOUT, new_url

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")

Log = list[Any]


class Refused(Exception):
    """What the tests' interceptors raise."""


class Methods(Service):
    """More methods, for what interceptors see."""

    async def who(self, ctxt: Any) -> Any:
        return TENANT.get(), dict(ctxt), msgbus.current_request().metadata

    def plain_who(self, ctxt: Any) -> Any:
        return TENANT.get(), dict(ctxt), msgbus.current_request().metadata

    def plain_note(self, _ctxt: Any, value: Any) -> None:
        self.log.append(value)

    def plain_thread(self, _ctxt: Any) -> int:
        return threading.get_ident()

    def plain_steps(self, _ctxt: Any) -> Iterator[Any]:
        """Items that are made in one context, on a thread that may block."""
        token = TENANT.set("generator")
        try:
            for _ in range(1000):
                threading.Event().wait(0.0001)  # An error on the event loop.
                yield TENANT.get()
        finally:
            TENANT.reset(token)
            threading.Event().wait(0.0001)
            self.log.append("closed")

    def plain_drip(self, _ctxt: Any) -> Iterator[int]:
        """One item, and then none until the test lets it go on."""
        try:
            yield 1
            self.log.append("waiting")
            self.go_on.wait(EVENT_TIMEOUT)
            yield 2
        finally:
            self.log.append("closed")

    def plain_hold_until_told(self, _ctxt: Any) -> None:
        """Wait until the test lets it go on."""
        self.log.append("began")
        self.go_on.wait(EVENT_TIMEOUT)

    def plain_hold(self, _ctxt: Any) -> None:
        """Wait until its client cancels it, and then until the test lets it go on."""
        self.log.append("began")
        request = msgbus.current_request()
        while not request.cancelled:
            self.go_on.wait(0.005)
        self.log.append("cancelled")
        self.go_on.wait(EVENT_TIMEOUT)
        self.log.append("ended")

    @expected_exceptions(LookupError)
    async def expects(self, _ctxt: Any) -> None:
        raise LookupError("no such thing")

    @expected_exceptions(LookupError)
    async def items_and_expected(self, _ctxt: Any) -> AsyncIterator[int]:
        yield 1
        raise LookupError("no more")

    @expected_exceptions(LookupError)
    def plain_items_and_expected(self, _ctxt: Any) -> Iterator[int]:
        yield 1
        raise LookupError("no more")


@asynccontextmanager
async def intercepted(
    server: Sequence[AsyncInterceptor], client: Sequence[AsyncInterceptor], *, kind: str = "aio", **options: Any
) -> AsyncIterator[Bus]:
    """A server and clients with interceptors; the server for asyncio, or for threads with async methods."""
    bus = Bus(new_url(), Methods())
    conf = await conf_with(rpc_response_timeout=EVENT_TIMEOUT)
    modules = [__name__]
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(aio.get_rpc_transport(conf, bus.url, modules))
        bus.client = aio.get_rpc_client(transport, TOPIC, timeout=EVENT_TIMEOUT, interceptors=client)
        make = partial(msgbus.get_rpc_transport, conf, bus.url, modules)
        blocking = await asyncio.to_thread(make)
        stack.push_async_callback(asyncio.to_thread, blocking.cleanup)
        bus.blocking = msgbus.get_rpc_client(blocking, TOPIC, timeout=EVENT_TIMEOUT)
        if kind == "aio":
            served = await stack.enter_async_context(aio.get_rpc_transport(conf, bus.url, modules))
            bus.server = aio.get_rpc_server(served, SERVER, [bus.service], interceptors=server, **options)
            await bus.server.start()
            stack.push_async_callback(bus.server.wait, 1.0)
        else:
            serve = partial(msgbus.get_rpc_server, blocking, SERVER, [bus.service], interceptors=server, **options)
            bus.blocking_server = await asyncio.to_thread(serve)
            await asyncio.to_thread(bus.blocking_server.start)
            stack.push_async_callback(asyncio.to_thread, bus.blocking_server.wait, 1.0)
        stack.callback(bus.service.go_on.set)
        yield bus


def noting(log: Log) -> AsyncInterceptor:
    """An interceptor that notes what passes."""

    async def intercept(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        await asyncio.sleep(0)
        result = await proceed(request)
        log.append((request.kind, request.method, request.target.fanout, result))
        return result

    return intercept


def named(name: str, log: Log) -> AsyncInterceptor:
    """An interceptor that notes when it begins and ends."""

    async def intercept(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        log.append(f"{name} begins")
        try:
            return await proceed(request)
        finally:
            log.append(f"{name} ends")

    return intercept


@pytest.mark.parametrize("kind", ["aio", "sync"])
@on_loop
async def test_the_first_in_the_list_is_the_outermost(kind: str) -> None:
    """On both sides each is around the next one, for async methods and for plain ones."""
    log: Log = []
    async with intercepted([named("c", log), named("d", log)], [named("a", log), named("b", log)], kind=kind) as bus:
        for method in ("echo", "plain_echo"):
            assert await bus.client.call({}, method, value=1) == 1
            assert log == [f"{name} begins" for name in "abcd"] + [f"{name} ends" for name in "dcba"]
            log.clear()


@on_loop
async def test_every_verb_passes_the_interceptors_of_both_sides() -> None:
    """Calls, casts, casts to all, each of many casts, and streams; a ping does not."""
    there: Log = []
    here: Log = []
    async with intercepted([noting(there)], [noting(here)]) as bus:
        client = bus.client.prepare(timeout=EVENT_TIMEOUT)
        await client.call({}, "echo", value=1)
        await client.cast({}, "note", value=2)
        await client.fanout_cast({}, "note", value=3)
        assert await client.cast_many({}, [("note", {"value": 4}), ("plain_note", {"value": 5})]) == 2
        assert [item async for item in client.multicall({}, "count", to=2)] == [0, 1]
        await until(lambda: len(there) == 6)
        assert len(await client.ping()) == 1
    expected: Log = [("call", "echo", None, 1)] + [("cast", "note", None, None)] * 2
    expected += [("cast", "plain_note", None, None), ("cast", "note", True, None)]
    assert sorted(map(str, (entry for entry in here if entry[0] != "multicall"))) == sorted(map(str, expected))
    assert sorted(map(str, (entry[:3] for entry in there))) == sorted(map(str, (entry[:3] for entry in here)))


@pytest.mark.parametrize("kind", ["aio", "sync"])
@pytest.mark.parametrize("method", ["who", "plain_who"])
@on_loop
async def test_what_interceptors_change_is_what_the_method_gets(kind: str, method: str) -> None:
    """Context, arguments, metadata, and the variables of the request's context, on either kind of server."""

    async def add(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        request.context["tenant"] = "t1"
        request.metadata["token"] = "secret"
        return await proceed(request)

    async def change(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        assert msgbus.current_request().metadata == {"token": "secret"}
        TENANT.set(request.context["tenant"])
        request.args = {}
        request.metadata = {"by": "server"}
        return await proceed(request)

    mine = {"user": "ada"}
    async with intercepted([change], [add], kind=kind) as bus:
        for _ in range(2):
            found = await bus.client.call(mine, method, dropped=1)
            assert found == ["t1", {"user": "ada", "tenant": "t1"}, {"by": "server"}]
    assert mine == {"user": "ada"}


@on_loop
async def test_interceptors_of_a_server_run_on_its_event_loop() -> None:
    """In the task of the request, also around a plain method, which is on a thread."""
    seen: Log = []

    async def look(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        result = await proceed(request)
        seen.append((threading.get_ident(), result))
        return result

    async with intercepted([look], []) as bus:
        await bus.client.call({}, "plain_thread")
    ((thread, method_thread),) = seen
    assert thread == threading.get_ident()
    assert method_thread != thread


@on_loop
async def test_those_of_a_server_for_threads_run_on_its_event_loop_too() -> None:
    """That loop has a thread of its own, which is not one of those of plain methods."""
    seen: Log = []

    async def look(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        result = await proceed(request)
        seen.append((threading.current_thread().name, result))
        return result

    async with intercepted([look], [], kind="sync") as bus:
        await bus.client.call({}, "plain_thread")
    ((name, _),) = seen
    assert name == "msgbus-t-asyncio"


@on_loop
async def test_an_interceptor_may_answer_by_itself_or_raise() -> None:
    """Then the method does not run, or nothing is sent."""

    async def answer(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        if request.context.get("refuse"):
            raise msgbus.AccessDenied("not you")
        return "mine"

    for server, client in (([answer], []), ([], [answer])):
        async with intercepted(server, client) as bus:
            assert await bus.client.call({}, "note", value=1) == "mine"
            await bus.client.cast({}, "note", value=1)
            assert await bus.client.cast_many({}, [("note", {"value": 1})] * 3) == 3
            assert [item async for item in bus.client.multicall({}, "count", to=1)] == ["mine"]
            with pytest.raises(msgbus.AccessDenied, match="not you"):
                await bus.client.call({"refuse": 1}, "note", value=1)
            with pytest.raises(msgbus.AccessDenied, match="not you"):
                await anext(bus.client.multicall({"refuse": 1}, "count", to=1))
            assert bus.service.log == []


@on_loop
async def test_a_client_may_try_again_and_a_server_may_not() -> None:
    """Each time a client's interceptor proceeds a request of its own is sent; a server begins a method once."""
    tries = itertools.count()

    async def retry(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        try:
            return await proceed(request)
        except Refused:
            return await proceed(request)

    async def refuse_once(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        if next(tries) == 0:
            raise Refused
        return await proceed(request)

    async with intercepted([refuse_once], [retry]) as bus:
        assert await bus.client.call({}, "echo", value=1) == 1
        assert next(tries) == 2

    async def twice(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        await proceed(request)
        return await proceed(request)

    async with intercepted([twice], []) as bus:
        with pytest.raises(RPCDispatcherError, match="called proceed a second time"):
            await bus.client.call({}, "note", value=1)
        assert bus.service.log == [1]
    async with intercepted([], [twice]) as bus:
        with pytest.raises(CastsFailed, match="called proceed a second time"):
            await bus.client.cast_many({}, [("note", {"value": 1})])


@on_loop
async def test_a_client_that_cancels_interrupts_an_interceptor() -> None:
    """Wherever it awaits: something of its own, or the async method, which is cancelled too."""
    log: Log = []

    async def wait(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        try:
            if request.context.get("wait"):
                log.append("waiting")
                await asyncio.sleep(3600)
            result = await proceed(request)
            if request.context.get("wait after"):
                log.append("waiting")
                await asyncio.sleep(3600)
            return result
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    async with intercepted([wait], []) as bus:
        for where, method in (("wait", "echo"), ("wait after", "echo"), ("wait after", "plain_echo")):
            call = asyncio.ensure_future(bus.client.call({where: 1}, method, value=1))
            await until(lambda: log == ["waiting"])
            call.cancel()
            await until(lambda: log == ["waiting", "cancelled"])
            log.clear()
        call = asyncio.ensure_future(bus.client.call({}, "sleep"))
        await until(lambda: bus.service.log == ["asleep"])
        call.cancel()
        await until(lambda: log == ["cancelled"])
        assert bus.service.log == ["asleep", "cancelled"]


@pytest.mark.parametrize("delivery", msgbus.message.POLICIES)
@on_loop
async def test_a_plain_method_is_not_interrupted_behind_an_interceptor(delivery: Any) -> None:
    """It runs to its end, and once, also if its client cancels; so does the interceptor."""
    log: Log = []
    async with intercepted([named("a", log)], []) as bus:
        call = asyncio.ensure_future(bus.client.prepare(delivery=delivery).call({}, "plain_hold"))
        await until(lambda: bus.service.log == ["began"])
        call.cancel()
        await until(lambda: bus.service.log == ["began", "cancelled"])
        await asyncio.to_thread(bus.blocking.call, {}, "echo", value=1)  # Meanwhile the event loop has gone on.
        assert log == ["a begins", "a begins", "a ends"]
        bus.service.go_on.set()
        await until(lambda: len(log) == 4)
        assert bus.service.log == ["began", "cancelled", "ended"]


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@on_loop
async def test_a_server_that_stops_interrupts_an_interceptor_and_passes_a_cast_on(delivery: Any) -> None:
    """Another server runs it: its method has not begun here."""
    log: Log = []

    async def wait(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        log.append("waiting")
        await asyncio.sleep(3600)

    async with intercepted([wait], []) as bus:
        await bus.client.prepare(delivery=delivery).cast({}, "note", value=1)
        await until(lambda: log == ["waiting"])
        async with aio.get_rpc_transport(await conf_with(), bus.url) as transport:
            other = aio.get_rpc_server(transport, SERVER(server="two"), [bus.service])
            stopped = asyncio.ensure_future(bus.server.wait(0.05))
            await other.start()
            await stopped
            await until(lambda: bus.service.log == [1])
            await other.wait()


def counted(seen: Log) -> AsyncInterceptor:
    """An interceptor that notes what passes of a stream, and how it ends."""

    async def intercept(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        return each(await proceed(request))

    async def each(items: Any) -> AsyncIterator[Any]:
        try:
            async for item in items:
                seen.append(item)
                yield item * 10
            seen.append("end")
        except GeneratorExit:
            seen.append("closed")
            raise
        except BaseException as exc:
            seen.append(type(exc).__name__)
            raise

    return intercept


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("plain", ["", "plain_"])
@on_loop
async def test_an_interceptor_sees_all_of_a_stream(side: str, plain: str) -> None:
    """Its items, its end, an error midway, and that it is closed; also of a plain generator, which is on threads."""
    seen: Log = []
    interceptors: list[AsyncInterceptor] = [counted(seen)]
    async with intercepted(interceptors if side == "server" else [], interceptors if side == "client" else []) as bus:
        client, log = bus.client, bus.service.log
        assert [item async for item in client.multicall({}, f"{plain}count", to=2)] == [0, 10]
        assert seen == [0, 1, "end"]
        await until(lambda: log == ["closed"])
        seen.clear()
        stream = client.multicall({}, f"{plain}items_and_expected")
        assert await anext(stream) == 10
        with pytest.raises(LookupError, match="no more"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert seen == [1, "LookupError"]
        seen.clear()
        async with client.multicall({}, f"{plain}count", to=10**6) as stream:
            assert "open" in repr(stream)
            assert await anext(stream) == 0
        assert "closed" in repr(stream)
        await until(lambda: log == ["closed"] * 2)
        await until(lambda: seen[-1] in ("closed", "CancelledError"))
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert [item async for item in client.multicall({}, f"{plain}echo", value=3)] == [30]


@pytest.mark.parametrize("plain", ["", "plain_"])
@on_loop
async def test_a_stream_whose_client_has_gone_before_its_first_item_is_closed(plain: str) -> None:
    """What an interceptor of the server has made of the items is closed, although none was taken from it."""
    made, closed = asyncio.Event(), asyncio.Event()

    class Items(AsyncIterator[int]):
        async def __anext__(self) -> int:
            raise AssertionError("nobody wants one")

        async def aclose(self) -> None:
            closed.set()

    kept: Log = []

    async def slow(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        kept.append(await proceed(request))
        made.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(EVENT_TIMEOUT)
        kept.append(Items())
        return kept[-1]

    async with intercepted([slow], []) as bus, asyncio.timeout(EVENT_TIMEOUT / 2):
        stream = bus.client.multicall({}, f"{plain}count", to=2)
        taken = asyncio.ensure_future(anext(stream))
        await made.wait()
        taken.cancel()
        await stream.aclose()
        await closed.wait()


@on_loop
async def test_all_steps_of_a_plain_generator_share_a_context_on_threads() -> None:
    """Also if an interceptor looks at each item; and it is closed there."""
    seen: Log = []
    async with intercepted([counted(seen)], []) as bus:
        async with bus.client.multicall({}, "plain_steps") as stream:
            assert await anext(stream) == "generator" * 10
        await until(lambda: bus.service.log == ["closed"])
        items = [item async for item in bus.client.multicall({}, "plain_steps")]
        assert items == ["generator" * 10] * 1000
        assert bus.service.log == ["closed"] * 2


@on_loop
async def test_a_plain_generator_that_waits_is_closed_when_it_goes_on() -> None:
    """Its client has closed the stream, which an interceptor has wrapped: the step runs to its end on its thread."""
    async with intercepted([counted([])], []) as bus:
        async with bus.client.multicall({}, "plain_drip") as stream:
            assert await anext(stream) == 10
            await until(lambda: bus.service.log == ["waiting"])
            await asyncio.sleep(0.3)
        bus.service.go_on.set()
        await until(lambda: bus.service.log == ["waiting", "closed"])


@pytest.mark.parametrize("side", ["client", "server"])
@on_loop
async def test_a_stream_is_closed_where_an_interceptor_does_not(side: str) -> None:
    """The method's generator is closed at the end, whatever the interceptor has made of its items."""
    kept: Log = []

    async def keep(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        kept.append(await proceed(request))
        return first(kept[-1])

    async def first(items: Any) -> AsyncIterator[Any]:
        yield await anext(items)

    interceptors: list[AsyncInterceptor] = [keep]
    async with intercepted(interceptors if side == "server" else [], interceptors if side == "client" else []) as bus:
        assert [item async for item in bus.client.multicall({}, "count", to=10**6)] == [0]
        await until(lambda: bus.service.log == ["closed"])
        assert [item async for item in bus.client.multicall({}, "plain_count", to=10**6)] == [0]
        await until(lambda: bus.service.log == ["closed"] * 2)


@on_loop
async def test_streams_that_were_begun_are_closed_if_an_interceptor_raises() -> None:
    """And the caller gets what it has raised."""

    async def refuse(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        assert await anext(await proceed(request)) == 0
        raise Refused("no")

    async with intercepted([], [refuse]) as bus:
        with pytest.raises(Refused):
            await anext(bus.client.multicall({}, "count", to=10**6))
        await until(lambda: bus.service.log == ["closed"])


@pytest.mark.parametrize("side", ["client", "server"])
@on_loop
async def test_streams_that_were_begun_are_closed_if_what_is_around_them_cannot_be(side: str) -> None:
    """An interceptor may return any asynchronous iterator, which may raise when it is closed."""

    class Broken:
        def __init__(self, items: AsyncIterator[Any]) -> None:
            self.items = items

        def __aiter__(self) -> AsyncIterator[Any]:
            return self

        async def __anext__(self) -> Any:
            if await anext(self.items) == 1:
                raise Refused("no")

        async def aclose(self) -> None:
            raise LookupError("cannot be closed")

    async def intercept(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        around.append(Broken(await proceed(request)))
        return around[0]

    around: list[Broken] = []
    on_server, on_client = ([intercept], []) if side == "server" else ([], [intercept])
    async with intercepted(on_server, on_client) as bus:
        stream = bus.client.multicall({}, "count", to=10**6)
        assert await anext(stream) is None
        with pytest.raises(LookupError):
            await anext(stream)
        await until(lambda: bus.service.log == ["closed"])
        assert bus.client.transport.window.idle


@on_loop
async def test_another_task_may_close_an_intercepted_stream() -> None:
    """The one that waits for an item gets the end."""
    seen: Log = []
    async with intercepted([], [counted(seen)]) as bus:
        stream = bus.client.multicall({}, "drip")
        assert await anext(stream) == 10
        waiting = asyncio.ensure_future(anext(stream, "end"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task already waits"):
            await anext(stream)
        await stream.aclose()
        assert await waiting == "end"
        await until(lambda: "closed" in bus.service.log)


@on_loop
async def test_a_stream_that_is_closed_before_its_interceptor_proceeds_leaves_nothing_open() -> None:
    """Another task has closed it, and still has it; what the interceptor has made of its items is not iterated over."""
    may_proceed = asyncio.Event()

    async def intercept(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        await may_proceed.wait()
        items = await proceed(request)
        return (item async for item in items)

    async with intercepted([], [intercept]) as bus:
        stream = bus.client.multicall({}, "drip")
        waiting = asyncio.ensure_future(anext(stream, "end"))
        await asyncio.sleep(0)
        await stream.aclose()
        may_proceed.set()
        assert await waiting == "end"
        assert bus.client.transport.window.idle
        await until(lambda: bus.server.transport.server_calls == {})
        assert "closed" in repr(stream)


@on_loop
async def test_an_expected_exception_is_seen_as_it_is() -> None:
    """By the interceptors; the caller gets it too."""
    seen: Log = []

    async def look(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        try:
            return await proceed(request)
        except LookupError as exc:
            seen.append(exc.args[0])
            raise

    async with intercepted([look, look], []) as bus:
        with pytest.raises(LookupError, match="no such thing"):
            await bus.client.call({}, "expects")
    assert seen == ["no such thing"] * 2


@on_loop
async def test_casts_whose_interceptors_wait_give_their_places_back() -> None:
    """Also where they raise, answer themselves, or are cancelled: others can send afterwards."""
    waits = asyncio.Event()

    async def choose(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        value = request.args["value"]
        if value == "wait":
            waits.set()
            await asyncio.sleep(3600)
        if value == "raise":
            raise Refused("no")
        return None if value == "answer" else await proceed(request)

    async with intercepted([], [choose]) as bus:
        window = bus.client.transport.window
        assert await bus.client.cast_many({}, [("note", {"value": "answer"})] * 1000) == 1000
        with pytest.raises(CastsFailed) as failed:
            await bus.client.cast_many({}, [("note", {"value": value}) for value in (1, "raise", 2)])
        assert (failed.value.index, type(failed.value.error)) == (1, Refused)
        casting = asyncio.ensure_future(bus.client.cast_many({}, [("note", {"value": "wait"})]))
        await waits.wait()
        casting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await casting
        await until(lambda: window.idle)


def plain(request: InterceptedRequest, proceed: Any) -> Any:
    """An interceptor that is not ``async``."""
    return proceed(request)


@on_loop
async def test_a_plain_interceptor_on_an_event_loop_names_the_way_out() -> None:
    """It could block the loop, and cannot see the outcome."""
    wrong: Any = [plain]
    conf = await conf_with()
    async with aio.get_rpc_transport(conf, new_url()) as transport:
        for make in (
            lambda: aio.get_rpc_client(transport, TOPIC, interceptors=wrong),
            lambda: aio.get_rpc_server(transport, SERVER, [Service()], interceptors=wrong),
        ):
            with pytest.raises(TypeError, match=r"the interceptor plain is a plain function.*'async def'"):
                make()
    blocking = await asyncio.to_thread(msgbus.get_rpc_transport, conf, new_url())
    with pytest.raises(TypeError, match=r"the interceptor plain is a plain function.*'async def'"):
        await asyncio.to_thread(msgbus.get_rpc_server, blocking, SERVER, [Service()], interceptors=wrong)
    await asyncio.to_thread(blocking.cleanup)


@on_loop
async def test_a_coroutine_that_an_interceptor_forgets_is_an_error() -> None:
    """It returns what it should have awaited."""

    async def forgets(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        return proceed(request)

    for server, client in (([forgets], []), ([], [forgets])):
        async with intercepted(server, client) as bus:
            with pytest.raises(RPCDispatcherError, match="returned a coroutine that was not awaited"):
                await bus.client.call({}, "echo", value=1)


@on_loop
async def test_an_interceptor_may_close_what_it_proceeds_with() -> None:
    """`aclosing` around the stream is fine on both sides."""

    async def close(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        return each(await proceed(request))

    async def each(items: Any) -> AsyncIterator[Any]:
        async with aclosing(items):
            async for item in items:
                yield item

    async with intercepted([close], [close]) as bus:
        for method in ("count", "plain_count"):
            assert [item async for item in bus.client.multicall({}, method, to=3)] == [0, 1, 2]
            async with bus.client.multicall({}, method, to=10**6) as stream:
                assert await anext(stream) == 0
        await until(lambda: bus.service.log == ["closed"] * 4)


@on_loop
async def test_a_server_without_a_free_thread_holds_no_more_than_its_prefetch() -> None:
    """Also behind an interceptor a request under at_most_once is accepted when its plain method begins."""
    conf = await conf_with(executor_thread_pool_size=1, rpc_prefetch=1)
    first, second = Methods(), Methods()
    log: Log = []
    async with two_servers(conf, new_url(), first, second, interceptors=[noting(log)]) as (server, other, client):
        await client.cast({}, "plain_hold_until_told")
        await until(lambda: first.log == ["began"])
        for number in range(10):
            await client.cast({}, "plain_note", value=number)
        await other.start()
        await until(lambda: len(second.log) == 9)
        first.go_on.set()
        await until(lambda: len(first.log) == 2)
        assert sorted(first.log[1:] + second.log) == list(range(10))
        await other.wait(EVENT_TIMEOUT)
        await server.wait(EVENT_TIMEOUT)


@on_loop
async def test_a_server_that_stops_passes_on_what_waits_for_a_thread() -> None:
    """Behind an interceptor too, whatever that makes of it: it was not begun. What has begun is not run again."""
    conf = await conf_with(executor_thread_pool_size=1)
    first, second = Methods(), Methods()
    log: Log = []

    async def keep_quiet(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        try:
            return await proceed(request)
        except asyncio.CancelledError:
            log.append(request.method)

    async with two_servers(conf, new_url(), first, second, interceptors=[keep_quiet]) as (server, other, client):
        await client.cast({}, "plain_hold_until_told")
        await until(lambda: first.log == ["began"])
        await client.cast({}, "plain_note", value=1)
        await until(lambda: server._processor.load.threads.waiting == 1)
        await server.wait(0.05)
        assert log == ["plain_hold_until_told", "plain_note"]
        await other.start()
        await until(lambda: second.log == [1])
        first.go_on.set()
        await other.wait(EVENT_TIMEOUT)
        assert second.log == [1]


@on_loop
async def test_a_cast_that_gets_a_thread_too_late_was_not_run() -> None:
    """Whatever an interceptor makes of that. It sees that it was cancelled."""
    conf = await conf_with(executor_thread_pool_size=1)
    first, second = Methods(), Methods()
    log: Log = []

    async def keep_quiet(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        try:
            return await proceed(request)
        except BaseException as exc:
            log.append(type(exc))

    async with two_servers(conf, new_url(), first, second, interceptors=[keep_quiet]) as (server, _, client):
        await client.cast({}, "plain_hold_until_told")
        await until(lambda: first.log == ["began"])
        await client.prepare(timeout=1.0).cast({}, "plain_note", value=1)
        await until(lambda: server._processor.load.threads.waiting == 1)
        await asyncio.sleep(1.1)
        first.go_on.set()
        await until(lambda: len(log) == 1)
        assert log == [asyncio.CancelledError]
        await until(lambda: server._processor.counts[None, "plain_note"] == [0, 0, 1])
        assert 1 not in first.log
        await server.wait(EVENT_TIMEOUT)


@on_loop
async def test_what_cannot_be_accepted_is_not_answered_by_an_interceptor() -> None:
    """Its connection was lost before its method began: whatever the interceptor makes of that, it was not run here."""
    seen: Log = []

    async def answer(request: InterceptedRequest, proceed: AsyncProceed) -> Any:
        try:
            return await proceed(request)
        except asyncio.CancelledError:
            seen.append("not run")
            return "mine"

    def refuse(_call: object) -> None:
        raise NotAccepted

    async with intercepted([answer], []) as bus:
        for method in ("note", "plain_note"):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("msgbus.method_runner.accept", refuse)
                with pytest.raises(msgbus.OutcomeUnknown):
                    await bus.client.call({}, method, value=1)
        assert seen == ["not run"] * 2
        assert bus.service.log == []
