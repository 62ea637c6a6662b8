"""The verbs of the client for asyncio, and both clients with both servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import msgbus
from msgbus import Target, aio
from tests.aio.support import SERVER, TOPIC, Bus, Service, conf_with, on_loop, serving, until
from tests.support import EVENT_TIMEOUT

PAIRINGS = [("aio", "aio"), ("aio", "sync"), ("sync", "aio"), ("sync", "sync")]


class Either:
    """The client of a bus, for asyncio or for threads, used from tasks."""

    def __init__(self, bus: Bus, kind: str) -> None:
        self.kind = kind
        self.bus = bus

    async def do(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        if self.kind == "aio":
            return await getattr(self.bus.client, verb)(*args, **kwargs)
        return await asyncio.to_thread(getattr(self.bus.blocking, verb), *args, **kwargs)

    async def items(self, method: str, **kwargs: Any) -> list[Any]:
        if self.kind == "aio":
            return [item async for item in self.bus.client.multicall({}, method, **kwargs)]
        return await asyncio.to_thread(lambda: list(self.bus.blocking.multicall({}, method, **kwargs)))


@pytest.mark.parametrize(("client", "server"), PAIRINGS)
@on_loop
async def test_every_verb_works_between_every_client_and_every_server(url: str, client: str, server: str) -> None:
    """A client for tasks or threads calls, casts and streams from a server for tasks or threads, of async methods."""
    async with serving(url, server=server) as bus:
        either = Either(bus, client)
        assert await either.do("call", {}, "echo", value=[1, "a", None]) == [1, "a", None]
        assert await either.do("call", {"user": "ada"}, "context") == {"user": "ada"}
        assert await either.do("call", {}, "plain_echo", value=2) == 2
        assert await either.do("call", {}, "count", to=3) == 2
        assert await either.do("call", {}, "plain_count", to=3) == 2
        assert await either.items("count", to=5000) == list(range(5000))
        assert await either.items("plain_count", to=5000) == list(range(5000))
        assert await either.items("count", to=0) == []
        assert await either.items("echo", value=1) == [1]
        await either.do("cast", {}, "note", value="cast")
        await either.do("fanout_cast", {}, "note", value="fanout")
        assert await either.do("cast_many", {}, [("note", {"value": number}) for number in range(10)]) == 10
        await until(lambda: {"cast", "fanout", *range(10)} <= set(bus.service.log))
        answers = await either.do("ping")
        assert [answer["server"] for answer in answers] == ["one"]
        assert answers.expected in (None, 1)


@pytest.mark.parametrize(("client", "server"), PAIRINGS)
@on_loop
async def test_errors_reach_every_client_from_every_server(url: str, client: str, server: str) -> None:
    """What a method raises is raised at the caller, and so is what the server refuses."""
    async with serving(url, server=server) as bus:
        either = Either(bus, client)
        for method in ("fail", "plain_fail"):
            with pytest.raises(KeyError, match="no such thing"):
                await either.do("call", {}, method)
        with pytest.raises(KeyError, match="no such item"):
            await either.items("count_and_fail", to=3)
        with pytest.raises(msgbus.NoSuchMethod, match="ecko"):
            await either.do("call", {}, "ecko")
        with pytest.raises(msgbus.InvalidArguments, match="vale"):
            await either.do("call", {}, "echo", vale=1)
        with pytest.raises(msgbus.SerializationError, match="object"):
            await either.do("call", {}, "echo", value=object())


@on_loop
async def test_a_call_to_nobody_is_undeliverable(url: str) -> None:
    """Where no server is, each verb that needs one says so at once."""
    async with aio.get_rpc_transport(await conf_with(), url) as transport:
        client = aio.get_rpc_client(transport, TOPIC, timeout=5.0)
        with pytest.raises(msgbus.MessageUndeliverable, match="t"):
            await client.call({}, "echo")
        with pytest.raises(msgbus.MessageUndeliverable):
            await client.cast({}, "echo")
        with pytest.raises(msgbus.MessageUndeliverable):
            await anext(client.multicall({}, "echo"))
        with pytest.raises(msgbus.CastsFailed, match="nobody listens"):
            await client.cast_many({}, [("echo", {})])
        with pytest.raises(msgbus.MessageUndeliverable):
            await client.prepare(server="none").ping()
        await client.fanout_cast({}, "echo")
        assert await client.ping(1.0) == []


@on_loop
async def test_arguments_that_are_not_allowed_are_refused_before_anything_is_sent(fake_url: str) -> None:
    """A missing method or context, a fanout call and a version above the cap are refused, as with the other client."""
    async with serving(fake_url) as bus:
        client = bus.client
        with pytest.raises(TypeError, match="context is missing"):
            await client.call("echo")
        with pytest.raises(TypeError, match="name is missing"):
            await client.cast({})
        with pytest.raises(msgbus.InvalidTarget, match="sent to all servers"):
            await client.prepare(fanout=True).call({}, "echo")
        with pytest.raises(msgbus.InvalidTarget):
            await anext(client.prepare(fanout=True).multicall({}, "echo"))
        capped = client.prepare(version="2.0", version_cap="1.0")
        assert not capped.can_send_version()
        with pytest.raises(msgbus.RPCVersionCapError):
            await capped.call({}, "echo", value=1)
        with pytest.raises(ValueError, match="number of seconds"):
            client.prepare(timeout=float("nan"))
        for wait in (bus.server.wait, aio.get_rpc_server(client.transport, SERVER, []).start):
            with pytest.raises(ValueError, match="number of seconds"):
                await wait(float("nan"))
        assert client.transport.window.idle
        assert not len(client.transport.router)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
@on_loop
async def test_a_call_without_time_is_not_sent(fake_url: str, seconds: float) -> None:
    """Where the deadline has passed before the call begins, nothing is sent."""
    async with serving(fake_url) as bus:
        with pytest.raises(msgbus.MessagingTimeout, match="nothing was sent"):
            await bus.client.prepare(timeout=seconds).call({}, "note", value=1)
        with pytest.raises(msgbus.MessagingTimeout, match="nothing was sent"):
            await anext(bus.client.prepare(timeout=seconds).multicall({}, "count", to=1))
        assert bus.service.log == []


@on_loop
async def test_prepare_makes_a_client_for_another_target(url: str) -> None:
    """A prepared client is one for asyncio, and asks the server that it names."""
    async with serving(url) as bus:
        prepared = bus.client.prepare(server="one", timeout=10.0)
        assert isinstance(prepared, aio.AsyncRPCClient)
        assert await prepared.call({}, "echo", value=1) == 1
        assert [answer["server"] for answer in await prepared.ping()] == ["one"]


@on_loop
async def test_a_call_that_is_not_answered_in_time_says_what_is_known(url: str) -> None:
    """The text of a timeout names method, target, message system, and the server that runs the call."""
    async with serving(url) as bus:
        seconds, text = 0.3, ""
        while "runs it" not in text and seconds < EVENT_TIMEOUT:  # A busy server begins late.
            seconds *= 2
            with pytest.raises(msgbus.MessagingTimeout) as raised:
                await bus.client.prepare(timeout=seconds).call({}, "nap")
            text = str(raised.value)
        system = "ZeroMQ" if bus.url.startswith("zmq") else "in-memory"
        for part in ("'nap'", "topic 't'", f"{seconds:g} s", "server 'one' runs it", system):
            assert part in text


@on_loop
async def test_a_method_calls_on_with_what_is_left_of_its_time(fake_url: str) -> None:
    """A call that an async method makes inherits the deadline of the request; a cast does not."""

    class Middle(Service):
        client: aio.AsyncRPCClient

        async def ask(self, _ctxt: Any) -> float:
            request = msgbus.current_request()
            assert request.time_left is not None
            await self.client.cast({}, "note", value="cast")
            with pytest.raises(msgbus.MessagingTimeout):
                await self.client.call({}, "nap")
            self.log.append("timed out")
            await asyncio.Event().wait()  # Its client waits no longer either.
            return 0.0

    middle = Middle()
    async with serving(fake_url, middle) as bus:
        middle.client = bus.client.prepare(timeout=3600.0)
        with pytest.raises(msgbus.MessagingTimeout):
            await bus.client.prepare(timeout=0.5).call({}, "ask")
        await until(lambda: "cast" in middle.log and ("timed out" in middle.log or "cancelled" in middle.log))


@on_loop
async def test_a_version_and_a_namespace_find_their_endpoint(fake_url: str) -> None:
    """A request goes to the endpoint whose target fits, also where its methods are async."""

    class Admin:
        target = Target(namespace="admin", version="2.3")

        async def echo(self, _ctxt: Any) -> str:
            return "admin"

    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        server = aio.get_rpc_server(transport, Target(topic="t", server="one"), [Service(), Admin()])
        async with server:
            client = aio.get_rpc_client(transport, TOPIC, timeout=20.0)
            assert await client.call({}, "echo", value=1) == 1
            assert await client.prepare(namespace="admin", version="2.1").call({}, "echo") == "admin"
            with pytest.raises(msgbus.UnsupportedVersion):
                await client.prepare(namespace="admin", version="2.4").call({}, "echo")


@on_loop
async def test_cast_many_takes_asynchronous_iterables(url: str) -> None:
    """The casts of an asynchronous generator are sent in its order, and it is closed at the end."""
    closed = []

    async def requests() -> AsyncIterator[tuple[str, dict[str, Any]]]:
        try:
            for number in range(100):
                await asyncio.sleep(0)
                yield "note", {"value": number}
        finally:
            closed.append(True)

    async with serving(url, executor_tasks=1) as bus:
        assert await bus.client.cast_many({}, requests()) == 100
        assert closed == [True]
        await until(lambda: len(bus.service.log) == 100)
        assert bus.service.log == list(range(100))


@pytest.mark.parametrize("is_async", [True, False])
@on_loop
async def test_cast_many_lets_other_tasks_run_meanwhile(fake_url: str, is_async: bool) -> None:
    """Also where the message system takes each cast at once, and the iterable never waits."""
    most = longest = 0

    def step() -> None:
        nonlocal most, longest
        most += 1
        longest = max(longest, most)

    async def steps() -> AsyncIterator[tuple[str, dict[str, Any]]]:
        for number in range(1000):
            step()
            yield "note", {"value": number}

    def plain_steps() -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(1000):
            step()
            yield "note", {"value": number}

    async def other() -> None:
        nonlocal most
        while True:
            most = 0
            await asyncio.sleep(0)

    async with serving(fake_url) as bus:
        task = asyncio.create_task(other())
        assert await bus.client.cast_many({}, steps() if is_async else plain_steps()) == 1000
        task.cancel()
        assert longest <= 200


@on_loop
async def test_cast_many_goes_on_with_what_an_iterable_raises(fake_url: str) -> None:
    """An error of the iterable is raised once the casts before it are confirmed, with a note that says how many."""

    async def requests() -> AsyncIterator[tuple[str, dict[str, Any]]]:
        yield "note", {"value": 1}
        raise ZeroDivisionError

    async with serving(fake_url) as bus:
        with pytest.raises(ZeroDivisionError) as raised:
            await bus.client.cast_many({}, requests())
        assert raised.value.__notes__ == ["1 casts were confirmed before"]
        with pytest.raises(msgbus.CastsFailed, match="pair of a method's name"):
            await bus.client.cast_many({}, [("note",)])  # type: ignore[list-item]
        assert bus.client.transport.window.idle


@on_loop
async def test_cast_many_closes_an_asynchronous_generator_that_it_leaves_early(fake_url: str) -> None:
    """After a failed cast no more are asked for, and the generator's `finally` has run when the error is raised."""
    closed = []

    async def requests() -> AsyncIterator[tuple[str, dict[str, Any]]]:
        try:
            while True:
                yield "note", {"value": object()}
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async with serving(fake_url) as bus:
        with pytest.raises(msgbus.CastsFailed):
            await bus.client.cast_many({}, requests())
        assert closed == [True]
        assert bus.client.transport.window.idle
