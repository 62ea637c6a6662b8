"""Plain methods on a server of async ones: what becomes of those that wait for a thread, or are given up."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import msgbus
from msgbus import aio
from msgbus.serializer import NoOpSerializer
from tests.aio.support import SERVER, TOPIC, Service, conf_with, on_loop, request_var, serving, two_servers, until
from tests.support import EVENT_TIMEOUT


class Noting(Service):
    """Plain methods: one holds its thread, the other notes what it gets."""

    ended = False

    def hold(self, _ctxt: Any) -> None:
        self.log.append("began")
        self.go_on.wait(2 * EVENT_TIMEOUT)
        self.ended = True

    def plain_note(self, _ctxt: Any, value: Any) -> None:
        self.log.append(value)


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@on_loop
async def test_what_waits_for_a_thread_when_time_is_over_is_never_run(fake_url: str, delivery: str) -> None:
    """Its caller gets `CallCancelled`, or another server runs it: so this one must not run it afterwards."""
    conf = await conf_with(executor_thread_pool_size=1, rpc_delivery=delivery)
    first, second = Noting(), Noting()
    async with two_servers(conf, fake_url, first, second) as (server, other, client):
        await client.prepare(delivery="at_most_once").cast({}, "hold")
        await until(lambda: first.log == ["began"])
        call = asyncio.create_task(client.call({}, "plain_note", value=1))
        await until(lambda: len(list(server._processor.calls)) == 2)
        await asyncio.sleep(0.05)
        await other.start()
        assert await server.wait(0.0) >= 1
        if delivery == "at_most_once":
            with pytest.raises(msgbus.CallCancelled, match="server was stopped"):
                await call
        else:
            await call
            assert second.log == [1]
        first.go_on.set()
        await until(lambda: first.ended)
        await asyncio.sleep(0.2)
        assert first.log == ["began"]
        await other.wait(EVENT_TIMEOUT)


@on_loop
async def test_a_server_without_a_free_thread_holds_no_more_than_its_prefetch(fake_url: str) -> None:
    """Under at_most_once too, where a request is accepted when its method begins: the rest is left to other servers."""
    conf = await conf_with(executor_thread_pool_size=1, rpc_prefetch=1)
    first, second = Noting(), Noting()
    async with two_servers(conf, fake_url, first, second) as (server, other, client):
        await client.cast({}, "hold")
        await until(lambda: first.log == ["began"])
        for number in range(10):
            await client.cast({}, "plain_note", value=number)
        await until(lambda: len(list(server._processor.calls)) == 2)
        await other.start()
        await until(lambda: len(second.log) == 9)
        first.go_on.set()
        await until(lambda: len(first.log) == 2)
        assert sorted(first.log[1:] + second.log) == list(range(10))
        await other.wait(EVENT_TIMEOUT)


@on_loop
async def test_what_has_waited_for_a_thread_beyond_its_deadline_is_not_run(fake_url: str) -> None:
    """As anything that has expired. What is still wanted is run."""
    service = Noting()
    async with serving(fake_url, service, executor_thread_pool_size=1) as bus:
        await bus.client.cast({}, "hold")
        await until(lambda: service.log == ["began"])
        for verb in (
            bus.client.prepare(timeout=0.5).call,
            bus.client.prepare(timeout=0.5, delivery="at_least_once").call,
        ):
            with pytest.raises(msgbus.MessagingTimeout):
                await verb({}, "plain_note", value="late")
        await bus.client.prepare(timeout=0.5).cast({}, "plain_note", value="late")
        await asyncio.sleep(0.6)
        wanted = asyncio.create_task(bus.client.call({}, "plain_note", value="wanted"))
        await asyncio.sleep(0.05)
        service.go_on.set()
        await wanted
        assert service.log == ["began", "wanted"]
        assert await bus.server.wait(EVENT_TIMEOUT) == 0


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@on_loop
async def test_a_cast_that_waits_for_a_thread_when_time_is_over_goes_to_another_server(
    fake_url: str, delivery: str
) -> None:
    """It has not begun: so nothing is lost, and that does not count as an attempt."""
    conf = await conf_with(executor_thread_pool_size=1, rpc_delivery=delivery)
    attempts: list[int] = []

    class Counting(Noting):
        def plain_note(self, _ctxt: Any, value: Any) -> None:
            attempts.append(msgbus.current_request().attempts)
            self.log.append(value)

    first, second = Counting(), Counting()
    async with two_servers(conf, fake_url, first, second) as (server, other, client):
        await client.prepare(delivery="at_most_once").cast({}, "hold")
        await until(lambda: first.log == ["began"])
        await client.cast({}, "plain_note", value=1)
        await until(lambda: len(list(server._processor.calls)) == 2)
        await asyncio.sleep(0.05)
        await other.start()
        assert await server.wait(0.0) >= 1
        await until(lambda: second.log == [1])
        first.go_on.set()
        await until(lambda: first.ended)
        await other.wait(EVENT_TIMEOUT)
        assert (first.log, attempts) == (["began"], [1])


@on_loop
async def test_a_cast_that_is_cancelled_is_run_by_another_server_also_without_retries(fake_url: str) -> None:
    """Its method has not raised: under at_least_once it does not become a dead letter."""
    conf = await conf_with(rpc_delivery="at_least_once", rpc_cast_retries=0)
    letters: list[Any] = []
    first, second = Service(), Service()
    second.may_go = True
    async with aio.get_rpc_transport(conf, fake_url) as one, aio.get_rpc_transport(conf, fake_url) as two:
        server = aio.get_rpc_server(one, SERVER, [first], on_dead_letter=letters.append)
        other = aio.get_rpc_server(two, SERVER(server="two"), [second], on_dead_letter=letters.append)
        await server.start()
        await aio.get_rpc_client(two, TOPIC, timeout=EVENT_TIMEOUT).cast({}, "nap")
        await until(lambda: first.log == ["began"])
        await other.start()
        assert await server.wait(0.0) == 1
        await until(lambda: "ended" in second.log or letters)
        assert letters == []
        await other.wait(EVENT_TIMEOUT)


@pytest.mark.parametrize("server", ["aio", "sync"])
@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@on_loop
async def test_a_plain_method_that_raises_the_error_of_a_cancelled_task_is_answered_with_it(
    fake_url: str, server: str, delivery: str
) -> None:
    """As with any other exception. It is not taken for the end of the server, and the call is not run again."""

    class Raising(Service):
        def work(self, _ctxt: Any) -> None:
            self.log.append("ran")
            raise asyncio.CancelledError

    async with serving(fake_url, Raising(), server=server, executor="asyncio", rpc_delivery=delivery) as bus:
        with pytest.raises(msgbus.RemoteError, match="CancelledError"):
            await bus.client.call({}, "work")
        assert bus.service.log == ["ran"]


@pytest.mark.parametrize("kind", ["aio", "asyncio", "threading"])
@on_loop
async def test_all_steps_of_a_request_run_in_one_context(fake_url: str, kind: str) -> None:
    """What a serializer or a plain method sets, each step of a generator and the hook for dead letters find."""

    class Remembering(NoOpSerializer):
        def deserialize_context(self, context: Any) -> Any:
            request_var.set(context["who"])
            return context

        def serialize_entity(self, context: Any, entity: Any) -> Any:
            return [entity, request_var.get()]

    class Endpoint:
        def items(self, _ctxt: Any) -> Iterator[str]:
            yield request_var.get()
            yield request_var.get()

        def other_items(self, _ctxt: Any) -> Iterator[str]:
            request_var.set("other")
            return iter_var()

        def fail(self, _ctxt: Any) -> None:
            request_var.set("failed")
            raise ZeroDivisionError

    def iter_var() -> Iterator[str]:
        yield request_var.get()

    letters: list[str] = []

    def hook(_letter: Any) -> None:
        letters.append(request_var.get())

    conf = await conf_with(rpc_cast_retries=0)
    blocking = await asyncio.to_thread(msgbus.get_rpc_transport, conf, fake_url)
    async with aio.get_rpc_transport(conf, fake_url) as transport:
        server: Any
        if kind == "aio":
            server = aio.get_rpc_server(transport, SERVER, [Endpoint()], Remembering(), on_dead_letter=hook)
            await server.start()
        else:
            server = msgbus.get_rpc_server(
                blocking, SERVER, [Endpoint()], kind, serializer=Remembering(), on_dead_letter=hook
            )
            await asyncio.to_thread(server.start)
        client = aio.get_rpc_client(transport, TOPIC, timeout=EVENT_TIMEOUT)
        for _ in range(2):
            found = [item async for item in client.multicall({"who": "me"}, "items")]
            assert found == [["me", "me"], ["me", "me"]]
            found = [item async for item in client.multicall({"who": "me"}, "other_items")]
            assert found == [["other", "other"]]
        await client.prepare(delivery="at_least_once").cast({"who": "me"}, "fail")
        await until(lambda: letters)
        assert letters == ["failed"]
        assert request_var.get() == "none"
        if kind == "aio":
            await server.wait(EVENT_TIMEOUT)
        else:
            await asyncio.to_thread(server.wait, EVENT_TIMEOUT)
    await asyncio.to_thread(blocking.cleanup)


@pytest.mark.parametrize("method", ["fail", "plain_fail"])
@on_loop
async def test_requests_that_raise_leave_nothing_to_the_garbage_collector(
    fake_url: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they have used is freed when they are over: thousands of them must not make the memory grow."""
    monkeypatch.setattr(logging.getLogger("msgbus.processing"), "disabled", True)  # Its lines hold the traceback.
    async with serving(fake_url) as bus:
        calls = bus.server._processor.calls
        kept: list[weakref.ref[Any]] = []
        begin = calls.begin

        def note(call: Any, **options: Any) -> Any:
            kept.append(weakref.ref(call))
            return begin(call, **options)

        monkeypatch.setattr(calls, "begin", note)
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                with pytest.raises(KeyError):
                    await bus.client.call({}, method)
            assert len(kept) == 5
            await until(lambda: all(ref() is None for ref in kept))
        finally:
            gc.enable()


@pytest.mark.parametrize(("server", "executor"), [("aio", None), ("sync", "asyncio"), ("sync", "threading")])
@on_loop
async def test_a_cast_that_raised_and_gets_a_thread_again_too_late_is_a_dead_letter(
    fake_url: str, server: str, executor: str | None, retries_at_once: None
) -> None:
    """As one whose deadline passes during the delay: it is not run after that, and not forgotten either."""
    letters: list[Any] = []

    may_raise = threading.Event()
    go_on = threading.Event()
    log: list[str] = []

    class Endpoint:
        def fail(self, _ctxt: Any) -> None:
            log.append("ran")
            may_raise.wait(EVENT_TIMEOUT)
            raise ZeroDivisionError

        def hold(self, _ctxt: Any) -> None:
            log.append("held")
            go_on.wait(EVENT_TIMEOUT)

    conf = await conf_with(executor_thread_pool_size=1, rpc_prefetch=10)
    blocking = await asyncio.to_thread(msgbus.get_rpc_transport, conf, fake_url)
    async with aio.get_rpc_transport(conf, fake_url) as transport:
        found: Any
        if server == "aio":
            found = aio.get_rpc_server(transport, SERVER, [Endpoint()], on_dead_letter=letters.append)
            await found.start()
        else:
            found = msgbus.get_rpc_server(blocking, SERVER, [Endpoint()], executor, on_dead_letter=letters.append)
            await asyncio.to_thread(found.start)
        client = aio.get_rpc_client(transport, TOPIC, timeout=EVENT_TIMEOUT)
        await client.prepare(timeout=1.0, delivery="at_least_once").cast({}, "fail")
        await until(lambda: log == ["ran"])
        await client.cast({}, "hold")
        await asyncio.sleep(0.1)  # It waits for the thread, and gets it before the other is run again.
        may_raise.set()
        await until(lambda: log == ["ran", "held"])
        await asyncio.sleep(1.0)
        go_on.set()
        await until(lambda: letters)
        assert log == ["ran", "held"]
        assert "its deadline passes before it could be run again" in letters[0].reason
        if server == "aio":
            await found.wait(EVENT_TIMEOUT)
        else:
            await asyncio.to_thread(found.wait, EVENT_TIMEOUT)
    await asyncio.to_thread(blocking.cleanup)


@on_loop
async def test_stats_count_what_is_cancelled_and_what_waits_for_a_thread(fake_url: str) -> None:
    """Tasks, and plain methods on threads, each with their limit. What its client cancels is no failure.

    The request for the stats is a task too, and needs no thread.
    """
    async with serving(fake_url, Noting(), executor_thread_pool_size=2) as bus:
        own = bus.client.prepare(namespace="msgbus")

        async def counts(method: str) -> Any:
            return (await own.call({}, "stats"))["methods"].get(method)

        with pytest.raises(msgbus.MessagingTimeout):
            await bus.client.prepare(timeout=1.0).call({}, "sleep")
        await until(lambda: "cancelled" in bus.service.log)
        assert await counts("sleep") == {"begun": 1, "finished": 0, "failed": 0, "cancelled": 1}
        await bus.client.cast({}, "hold")
        await until(lambda: "began" in bus.service.log)
        found = await own.call({}, "stats")
        assert [running["method"] for running in found["running"]] == ["hold"]
        assert found["tasks"] == {"busy": 2, "limit": 1000, "waiting": 0}
        assert found["threads"] == {"busy": 1, "limit": 2, "waiting": 0}
        assert await counts("hold") == {"begun": 1, "finished": 0, "failed": 0, "cancelled": 0}
