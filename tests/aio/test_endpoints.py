"""What runs where: async methods on the event loop, plain ones on threads; contexts; and how a server is chosen."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import msgbus
from msgbus import Target, aio
from msgbus.executor import Executor
from msgbus.serializer import NoOpSerializer
from tests.aio.support import SERVER, TOPIC, Service, conf_with, on_loop, request_var, serving, until
from tests.support import EVENT_TIMEOUT, new_conf


class Where(Service):
    """Says where its methods run, and what they know."""

    def _here(self) -> list[Any]:
        request = msgbus.current_request()
        try:
            asyncio.get_running_loop()
            loop = True
        except RuntimeError:
            loop = False
        seen = request_var.get()
        request_var.set(f"{seen}+")
        return [loop, threading.get_ident(), request.method, request.server, seen]

    async def run(self, _ctxt: Any) -> list[Any]:
        first = self._here()
        await asyncio.sleep(0)
        assert request_var.get().endswith("+")
        assert await asyncio.to_thread(lambda: msgbus.current_request().method) == "run"
        return first

    def plain_run(self, _ctxt: Any) -> list[Any]:
        return self._here()

    async def items(self, _ctxt: Any) -> AsyncIterator[list[Any]]:
        yield self._here()
        await asyncio.sleep(0)
        yield self._here()

    def plain_items(self, _ctxt: Any) -> Iterator[list[Any]]:
        yield self._here()
        yield self._here()


@pytest.mark.parametrize("server", ["aio", "sync"])
@on_loop
async def test_async_methods_run_on_the_event_loop_and_plain_ones_on_threads(fake_url: str, server: str) -> None:
    """Each with its request, in a copy of the context in which the server was started, which no other request sees."""
    request_var.set("of the program")
    async with serving(fake_url, Where(), server=server) as bus:
        threads = set()
        for _ in range(2):
            loop, thread, *rest = await bus.client.call({}, "run")
            assert (loop, rest) == (True, ["run", "one", "of the program"])
            threads.add(thread)
            loop, thread, *rest = await bus.client.call({}, "plain_run")
            assert (loop, rest) == (False, ["plain_run", "one", "of the program"])
            assert thread not in threads
            found = [item async for item in bus.client.multicall({}, "items")]
            assert [item[0] for item in found] == [True, True]
            assert [item[2:] for item in found] == [
                ["items", "one", "of the program"],
                ["items", "one", "of the program+"],
            ]
            found = [item async for item in bus.client.multicall({}, "plain_items")]
            assert [item[0] for item in found] == [False, False]
            assert [item[4] for item in found] == ["of the program", "of the program+"]
        assert (threading.get_ident() in threads) == (server == "aio")
        assert len(threads) == 1


@on_loop
async def test_many_async_methods_run_at_a_time_on_one_thread(fake_url: str) -> None:
    """As many as `executor_tasks` allows; further ones wait for their turn."""
    async with serving(fake_url, executor_tasks=50, rpc_prefetch=1000) as bus:
        calls = [asyncio.create_task(bus.client.call({}, "nap", value=number)) for number in range(60)]
        await until(lambda: bus.service.log.count("began") == 50)
        await asyncio.sleep(0.05)
        assert bus.service.log == ["began"] * 50
        bus.service.may_go = True
        assert await asyncio.gather(*calls) == list(range(60))


@on_loop
async def test_plain_methods_do_not_hold_up_async_ones(fake_url: str) -> None:
    """While all threads are taken, an async method is run, and further plain ones wait."""
    async with serving(fake_url, executor_thread_pool_size=1) as bus:
        held = asyncio.create_task(bus.client.call({}, "plain_nap", value=1))
        await until(lambda: "began" in bus.service.log)
        waits = asyncio.create_task(bus.client.call({}, "plain_echo", value=2))
        assert await bus.client.call({}, "echo", value=3) == 3
        assert not waits.done()
        bus.service.go_on.set()
        assert (await held, await waits) == (1, 2)


def test_a_server_for_threads_with_an_async_method_runs_an_event_loop_by_itself(fake_url: str) -> None:
    """A cast to an async method is run; nobody has to choose an executor for it."""
    noted = threading.Event()

    class Endpoint:
        async def note(self, _ctxt: Any) -> None:
            await asyncio.sleep(0)
            noted.set()

    transport = msgbus.get_rpc_transport(new_conf(), fake_url)
    server = msgbus.get_rpc_server(transport, SERVER, [Endpoint()])
    server.start()
    msgbus.get_rpc_client(transport, TOPIC).cast({}, "note")
    assert noted.wait(EVENT_TIMEOUT)
    assert server.wait(EVENT_TIMEOUT) == 0
    for thread in threading.enumerate():
        if thread.name.endswith("-asyncio"):  # It has nothing more to do, and is about to end.
            thread.join(EVENT_TIMEOUT)
            assert not thread.is_alive()
    transport.cleanup()


def test_a_server_for_threads_without_async_methods_has_no_event_loop(fake_url: str) -> None:
    """It is `"threading"` then, unless `"asyncio"` is asked for."""

    class Endpoint:
        def echo(self, _ctxt: Any, value: Any) -> Any:
            return value

        async def _private(self, _ctxt: Any) -> None:
            raise AssertionError

    transport = msgbus.get_rpc_transport(new_conf(), fake_url)
    for executor, is_plain in ((None, True), ("threading", True), ("asyncio", False)):
        server = msgbus.get_rpc_server(transport, SERVER, [Endpoint()], executor)
        server.start()
        assert isinstance(server._executor, Executor) is is_plain
        assert msgbus.get_rpc_client(transport, TOPIC).call({}, "echo", value=1) == 1
        assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


def test_async_methods_are_refused_on_threads_only(fake_url: str) -> None:
    """`executor="threading"` names the method and what to do; an executor that does not exist names those that do."""
    transport = msgbus.get_rpc_transport(new_conf(), fake_url)
    with pytest.raises(TypeError, match=r"Service\.\w+ is async.*executor='asyncio'"):
        msgbus.get_rpc_server(transport, SERVER, [Service()], "threading")
    with pytest.raises(ValueError, match="'threading' and 'asyncio'"):
        msgbus.get_rpc_server(transport, SERVER, [Service()], "eventlet")
    transport.cleanup()


def test_a_server_for_threads_can_be_started_again(fake_url: str) -> None:
    """With a new event loop."""
    transport = msgbus.get_rpc_transport(new_conf(), fake_url)
    server = msgbus.get_rpc_server(transport, SERVER, [Service()])
    client = msgbus.get_rpc_client(transport, TOPIC)
    for _ in range(2):
        server.start()
        server.start()
        assert client.call({}, "echo", value=1) == 1
        assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


@pytest.mark.parametrize("server", ["aio", "sync"])
@pytest.mark.parametrize("method", ["exit", "plain_exit", "stop_iteration", "plain_stop_iteration", "interrupted"])
@on_loop
async def test_whatever_a_method_raises_its_caller_is_answered(fake_url: str, server: str, method: str) -> None:
    """Also what ends programs or iterations, and `CancelledError` of nobody; the server goes on."""

    class Raising(Service):
        async def exit(self, _ctxt: Any) -> None:
            raise SystemExit(3)

        def plain_exit(self, _ctxt: Any) -> None:
            raise SystemExit(3)

        async def stop_iteration(self, _ctxt: Any) -> None:
            raise StopIteration

        def plain_stop_iteration(self, _ctxt: Any) -> None:
            raise StopIteration

        async def interrupted(self, _ctxt: Any) -> None:
            raise asyncio.CancelledError

    async with serving(fake_url, Raising(), server=server) as bus:
        with pytest.raises((msgbus.RemoteError, RuntimeError)):
            await bus.client.call({}, method)
        assert await bus.client.call({}, "echo", value=1) == 1
        assert await bus.client.call({}, "plain_echo", value=1) == 1


@pytest.mark.parametrize("method", ["leave", "leave_later"])
@on_loop
async def test_a_task_of_a_method_that_ends_programs_does_not_end_a_server_for_threads(
    fake_url: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As where arguments are parsed by what calls `sys.exit`. It is logged, and the other requests are answered."""

    class Leaving(Service):
        async def leave(self, _ctxt: Any) -> None:
            async def child() -> None:
                sys.exit(3)

            await asyncio.gather(child())

        async def leave_later(self, _ctxt: Any) -> None:
            asyncio.get_running_loop().call_soon(sys.exit, 3)

    async with serving(fake_url, Leaving(), server="sync") as bus:
        nap = asyncio.create_task(bus.client.call({}, "nap", value=1))
        await until(lambda: "began" in bus.service.log)
        if method == "leave":
            with pytest.raises(msgbus.RemoteError, match="SystemExit"):
                await bus.client.call({}, method)
        else:
            await bus.client.call({}, method)
        assert await bus.client.call({}, "echo", value=2) == 2
        bus.service.may_go = True
        assert await nap == 1
        assert "the event loop goes on" in caplog.text


@pytest.mark.parametrize("part", ["deserialize_entity", "serialize_entity", "deserialize_context"])
@pytest.mark.parametrize("method", ["echo", "plain_echo"])
@on_loop
async def test_a_serializer_that_raises_on_the_server_is_answered(fake_url: str, part: str, method: str) -> None:
    """Its error goes to the caller, and the server goes on."""

    class Broken(NoOpSerializer):
        broken = True

    def fail(*_args: Any) -> Any:
        if serializer.broken:
            raise ZeroDivisionError("broken")
        return _args[-1]

    serializer = Broken()
    setattr(serializer, part, fail)
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        server = aio.get_rpc_server(transport, SERVER, [Service()], serializer=serializer)
        async with server:
            client = aio.get_rpc_client(transport, TOPIC, timeout=EVENT_TIMEOUT)
            with pytest.raises(ZeroDivisionError, match="broken"):
                await client.call({}, method, value=1)
            serializer.broken = False
            assert await client.call({}, method, value=1) == 1


@on_loop
async def test_a_serializer_that_raises_on_the_client_leaves_nothing_behind(fake_url: str) -> None:
    """Before the request is sent, or when the answer has come: the place is given back, and the call forgotten."""

    class Broken(NoOpSerializer):
        part = ""

        def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
            if self.part == "request":
                raise ZeroDivisionError
            return entity

        def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
            if self.part == "answer":
                raise ZeroDivisionError
            return entity

    async with serving(fake_url) as bus:
        serializer = Broken()
        client = aio.get_rpc_client(bus.client.transport, TOPIC, serializer=serializer, timeout=EVENT_TIMEOUT)
        for part in ("request", "answer"):
            serializer.part = part
            with pytest.raises(ZeroDivisionError):
                await client.call({}, "echo", value=1)
            with pytest.raises(ZeroDivisionError):
                await anext(client.multicall({}, "echo", value=1))
        serializer.part = "request"
        with pytest.raises(ZeroDivisionError):
            await client.cast({}, "echo", value=1)
        await until(lambda: bus.client.transport.window.idle)  # A stream that is dropped is closed a moment later.
        await until(lambda: not len(bus.client.transport.router))


@on_loop
async def test_serializers_translate_for_async_methods_and_generators(fake_url: str) -> None:
    """What the client's serializer did is undone for an async method, and its results and items are serialized."""

    class Doubling(NoOpSerializer):
        def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
            return entity * 2

        def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
            return entity // 2

    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:  # noqa: SIM117 - one belongs to the other
        async with aio.get_rpc_server(transport, SERVER, [Service()], serializer=Doubling()):
            client = aio.get_rpc_client(transport, TOPIC, serializer=Doubling(), timeout=EVENT_TIMEOUT)
            assert await client.call({}, "echo", value=21) == 21
            for method in ("count", "plain_count"):
                assert [item async for item in client.multicall({}, method, to=4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["echo", "plain_echo"])
@on_loop
async def test_an_access_policy_that_raises_is_answered(fake_url: str, method: str) -> None:
    """The caller gets its error, and the server goes on."""

    class Policy(msgbus.DefaultRPCAccessPolicy):
        def is_allowed(self, endpoint: object, name: str) -> bool:
            if name == method:
                raise ZeroDivisionError
            return True

    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:  # noqa: SIM117 - one belongs to the other
        async with aio.get_rpc_server(transport, SERVER, [Service()], access_policy=Policy):
            client = aio.get_rpc_client(transport, TOPIC, timeout=EVENT_TIMEOUT)
            with pytest.raises(ZeroDivisionError):
                await client.call({}, method, value=1)
            assert await client.call({}, "context") == {}


@on_loop
async def test_what_msgbus_calls_without_awaiting_may_not_be_async(fake_url: str) -> None:
    """Serializers, policies and hooks are plain on every server and client."""

    class Serializer(NoOpSerializer):
        async def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
            return entity

    class Policy(msgbus.DefaultRPCAccessPolicy):
        async def is_allowed(self, endpoint: object, name: str) -> bool:  # type: ignore[override]
            return True

    async def hook(*_args: Any) -> Any:
        raise AssertionError

    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        with pytest.raises(TypeError, match="async"):
            aio.get_rpc_client(transport, TOPIC, serializer=Serializer())
        with pytest.raises(TypeError, match="async"):
            aio.get_rpc_server(transport, SERVER, [Service()], serializer=Serializer())
        with pytest.raises(TypeError, match="async"):
            aio.get_rpc_server(transport, SERVER, [Service()], access_policy=Policy)
        with pytest.raises(TypeError, match="async"):
            aio.get_rpc_server(transport, SERVER, [Service()], on_dead_letter=hook)  # type: ignore[arg-type]


@on_loop
async def test_casts_of_async_methods_that_raise_are_tried_again_and_given_up(
    fake_url: str, retries_at_once: None
) -> None:
    """Under at_least_once, as those of plain methods: the hook gets what is given up, on the event loop."""
    letters: list[Any] = []
    attempts: list[int] = []

    class Failing:
        async def work(self, _ctxt: Any) -> None:
            attempts.append(msgbus.current_request().attempts)
            raise ZeroDivisionError("never works")

    conf = await conf_with(rpc_cast_retries=2)
    async with aio.get_rpc_transport(conf, fake_url) as transport:  # noqa: SIM117 - one belongs to the other
        async with aio.get_rpc_server(transport, SERVER, [Failing()], on_dead_letter=letters.append):
            await aio.get_rpc_client(transport, TOPIC, delivery="at_least_once").cast({}, "work")
            await until(lambda: letters)
    assert attempts == [1, 2, 3]
    assert "never works" in letters[0].reason


@pytest.mark.parametrize("server", ["aio", "sync"])
@on_loop
async def test_a_child_that_a_plain_method_forks_ends_with_the_method(fake_url: str, server: str) -> None:
    """The parent answers; the child, in which the event loop does not run, ends when it leaves the method."""

    class Forking(Service):
        def fork(self, _ctxt: Any) -> list[int]:
            child = os.fork()
            if child == 0:
                raise SystemExit(7)
            return [os.getpid(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]

    async with serving(fake_url, Forking(), server=server) as bus:
        assert await bus.client.call({}, "fork") == [os.getpid(), 7]
        assert await bus.client.call({}, "plain_echo", value=1) == 1


@on_loop
async def test_a_client_or_server_of_msgbus_aio_needs_its_transport(fake_url: str) -> None:
    """A transport for threads is refused, and says how to make the right one; and the other way round."""
    conf = await conf_with()
    blocking: Any = await asyncio.to_thread(msgbus.get_rpc_transport, conf, fake_url)
    with pytest.raises(TypeError, match=r"msgbus\.aio\.get_rpc_transport"):
        aio.get_rpc_client(blocking, TOPIC)
    with pytest.raises(TypeError, match=r"msgbus\.aio\.get_rpc_transport"):
        aio.get_rpc_server(blocking, SERVER, [Service()])
    async with aio.get_rpc_transport(conf, fake_url) as transport:
        wrong: Any = transport
        with pytest.raises(TypeError, match="transport"):
            msgbus.get_rpc_client(wrong, TOPIC)
        with pytest.raises(TypeError, match="transport"):
            msgbus.get_rpc_server(wrong, SERVER, [Service()])
        with pytest.raises(msgbus.InvalidTarget):
            aio.get_rpc_server(transport, Target(topic="t"), [Service()])
    await asyncio.to_thread(blocking.cleanup)
