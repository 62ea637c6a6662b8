"""One question to all servers of a topic, on an event loop: `AsyncRPCClient.gather`."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import msgbus
from msgbus import aio
from msgbus.drivers.base import Address
from tests.aio.support import SERVER, TOPIC, Service, conf_with, on_loop, serving, two_servers, until
from tests.support import EVENT_TIMEOUT


class Napping(Service):
    """One that answers at once, with a name."""

    async def name(self, _ctxt: Any) -> str:
        return "two"

    async def nap(self, _ctxt: Any, value: Any = None) -> Any:
        return value

    async def fail(self, _ctxt: Any) -> None:
        return None


class Named(Service):
    """One that takes long where it can."""

    async def name(self, _ctxt: Any) -> str:
        return "one"


@asynccontextmanager
async def two(url: str, **overrides: Any) -> AsyncIterator[tuple[Service, aio.AsyncRPCClient]]:
    """Servers "one", whose service takes long, and "two", and a client."""
    service = Named()
    async with two_servers(await conf_with(**overrides), url, service, Napping()) as (server, other, client):
        await other.start()
        yield service, client
        service.may_go = True
        await other.wait(1.0)
        await server.wait(1.0)


@on_loop
async def test_each_server_answers_with_its_name(url: str) -> None:
    """All answers come, each with its server; and it is known that nobody is missing."""
    async with two(url) as (_, client):
        answers = client.gather({}, "name")
        assert sorted([(answer.topic, answer.server, answer.value) async for answer in answers]) == [
            ("t", "one", "one"),
            ("t", "two", "two"),
        ]
        assert (answers.answered, answers.expected) == (2, 2)
        assert [answer async for answer in answers] == []
        failed = {answer.server: answer.error async for answer in client.gather({}, "fail")}
        assert failed["two"] is None
        assert isinstance(failed["one"], KeyError)
        assert client.transport.window.idle


@on_loop
async def test_answers_come_before_the_others_are_there(url: str) -> None:
    """One that takes long holds up nobody."""
    async with two(url) as (service, client):
        answers = client.gather({}, "nap", value=1)
        assert (await anext(answers)).server == "two"
        service.may_go = True
        assert [answer.server async for answer in answers] == ["one"]


@pytest.mark.parametrize("way", ["aclose", "with", "break", "deadline", "task"])
@on_loop
async def test_what_still_runs_is_cancelled_at_the_end(url: str, way: str) -> None:
    """However the iteration ends early; and its place in the send window is given back."""
    async with two(url) as (service, client):
        answers = client.prepare(timeout=1.0 if way == "deadline" else EVENT_TIMEOUT).gather({}, "nap")
        assert (await anext(answers)).server == "two"
        await until(lambda: "began" in service.log)
        assert not client.transport.window.idle
        if way == "aclose":
            await answers.aclose()
            await answers.aclose()
        elif way == "with":
            async with answers:
                pass
        elif way == "break":
            del answers
            gc.collect()
        elif way == "task":
            task = asyncio.ensure_future(anext(answers))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert [answer async for answer in answers] == []
        await until(lambda: "cancelled" in service.log)
        await until(lambda: client.transport.window.idle)
        assert not len(client.transport.router)


@on_loop
async def test_one_that_is_closed_before_it_begins_sends_nothing(fake_url: str) -> None:
    """It has no answers."""
    async with serving(fake_url) as bus:
        answers = bus.client.gather({}, "note", value=1)
        await answers.aclose()
        assert [answer async for answer in answers] == []
        assert bus.service.log == []


@on_loop
async def test_it_is_for_one_task(fake_url: str) -> None:
    """A second one that waits at the same time gets an error; one that closes it ends the first one's wait."""
    async with serving(fake_url) as bus:
        answers = bus.client.gather({}, "sleep")
        task = asyncio.ensure_future(anext(answers))
        await until(lambda: "asleep" in bus.service.log)
        with pytest.raises(RuntimeError, match="another task already waits"):
            await anext(answers)
        await answers.aclose()
        with pytest.raises(StopAsyncIteration):
            await task


@on_loop
async def test_a_topic_without_servers_ends_at_once(url: str) -> None:
    """And so does no topic. A server that is named and not there is an error."""
    async with aio.get_rpc_transport(await conf_with(), url) as transport:
        client = aio.get_rpc_client(transport, TOPIC, timeout=3600.0)
        answers = client.gather({}, "name")
        assert [answer async for answer in answers] == []
        assert (answers.answered, answers.expected) == (0, 0)
        assert [answer async for answer in client.prepare(topics=[]).gather({}, "name")] == []
        with pytest.raises(msgbus.MessageUndeliverable):
            await anext(client.prepare(server="none").gather({}, "name"))
        assert transport.window.idle


@on_loop
async def test_a_server_that_is_frozen_is_missing(fake_url: str) -> None:
    """At the deadline it has not answered, and is counted."""
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        silent = [Address("topic", "msgbus", "t"), Address("fanout", "msgbus", "t", "silent")]
        transport.driver.subscribe(silent, lambda _delivery: None, prefetch=10)
        answers = aio.get_rpc_client(transport, TOPIC, timeout=0.5).gather({}, "name")
        assert [answer async for answer in answers] == []
        assert (answers.answered, answers.expected) == (0, 1)
        assert repr(answers) == "<AsyncGathering, 0 of 1 answered, closed>"


@on_loop
async def test_a_gather_takes_one_place_of_the_send_window(fake_url: str) -> None:
    """Without a place nothing is sent."""
    async with two(fake_url, rpc_send_window=1) as (_, client):
        async with client.gather({}, "nap") as answers:
            assert (await anext(answers)).server == "two"
            with pytest.raises(msgbus.MessagingTimeout, match="rpc_send_window"):
                await anext(client.prepare(timeout=0.5).gather({}, "name"))
        assert len([answer async for answer in client.gather({}, "name")]) == 2


@on_loop
async def test_a_transport_that_is_closed_ends_it(fake_url: str) -> None:
    """Whoever waits gets `CallCancelled`."""
    async with serving(fake_url) as bus:
        answers = bus.client.gather({}, "sleep")
        task = asyncio.ensure_future(anext(answers))
        await until(lambda: "asleep" in bus.service.log)
        await bus.client.transport.aclose()
        with pytest.raises(msgbus.CallCancelled):
            await task


@on_loop
async def test_a_service_with_plain_methods_answers_too(fake_url: str) -> None:
    """Servers of both kinds answer clients of both kinds."""
    async with serving(fake_url, server="threads") as bus:
        assert [answer.value async for answer in bus.client.gather({}, "plain_echo", value=1)] == [1]
        blocking = await asyncio.to_thread(lambda: list(bus.blocking.gather({}, "echo", value=2)))
        assert [(answer.server, answer.value) for answer in blocking] == [(SERVER.server, 2)]


@on_loop
async def test_an_event_loop_of_another_is_refused(fake_url: str) -> None:
    """As for the other verbs."""
    async with serving(fake_url) as bus:

        async def elsewhere() -> None:
            await anext(bus.client.gather({}, "echo", value=1))

        with pytest.raises(msgbus.ConfigurationError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())


@on_loop
async def test_its_time_begins_with_the_iteration(fake_url: str) -> None:
    """As that of a stream. What it asks is sent then, and no time was lost before."""
    async with serving(fake_url) as bus:
        answers = bus.client.prepare(timeout=1.0).gather({}, "echo", value=1)
        assert repr(answers) == "<AsyncGathering, 0 of None answered, not begun>"
        await asyncio.sleep(1.1)
        (answer,) = [answer async for answer in answers]
        assert answer.value == 1
        assert answer.seconds < 1.0
