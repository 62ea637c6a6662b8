"""How servers of async methods end, and what their clients see then."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import msgbus
from msgbus import aio
from tests.aio.support import LONG, SERVER, TOPIC, Service, conf_with, on_loop, serving, two_servers, until
from tests.support import EVENT_TIMEOUT, new_conf


@on_loop
async def test_stop_cancels_nothing(url: str) -> None:
    """What runs goes on and is answered; what comes later goes to nobody."""
    async with serving(url) as bus:
        running = [asyncio.create_task(bus.client.call({}, method, value=1)) for method in ("nap", "plain_nap")]
        await until(lambda: bus.service.log.count("began") == 2)
        await bus.server.stop()
        await bus.server.stop()
        assert "stopping" in repr(bus.server)
        with pytest.raises(msgbus.MessagingException):
            await bus.client.prepare(timeout=0.3).call({}, "echo", value=1)
        bus.service.may_go = True
        bus.service.go_on.set()
        assert await asyncio.gather(*running) == [1, 1]
        assert "cancelled" not in bus.service.log
        assert await bus.server.wait(EVENT_TIMEOUT) == 0
        assert "not serving" in repr(bus.server)


@pytest.mark.parametrize("server", ["aio", "sync"])
@on_loop
async def test_wait_lets_what_runs_finish(fake_url: str, server: str) -> None:
    """Without a timeout as long as it takes."""
    async with serving(fake_url, server=server) as bus:
        running = [asyncio.create_task(bus.client.call({}, method, value=1)) for method in ("nap", "plain_nap")]
        await until(lambda: bus.service.log.count("began") == 2)
        if server == "aio":
            waiting = asyncio.create_task(bus.server.wait())
        else:
            waiting = asyncio.create_task(asyncio.to_thread(bus.blocking_server.wait))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        bus.service.may_go = True
        bus.service.go_on.set()
        assert await waiting == 0
        assert await asyncio.gather(*running) == [1, 1]


@pytest.mark.parametrize("server", ["aio", "sync"])
@on_loop
async def test_what_runs_when_the_time_of_wait_is_over_is_cancelled(fake_url: str, server: str) -> None:
    """Async methods get `CancelledError`; their clients, and those of plain methods, get `CallCancelled`."""
    async with serving(fake_url, server=server) as bus:
        running = [asyncio.create_task(bus.client.call({}, method)) for method in ("nap", "plain_nap")]
        running.append(asyncio.create_task(anext_after(bus.client.multicall({}, "drip"))))
        await until(lambda: bus.service.log.count("began") == 2 and running[2].get_name() == "waits")
        if server == "aio":
            abandoned = await bus.server.wait(0.05)
        else:
            abandoned = await asyncio.to_thread(bus.blocking_server.wait, 0.05)
        assert abandoned == 3
        for task in running:
            with pytest.raises(msgbus.CallCancelled, match="server was stopped while it ran"):
                await task
        assert bus.service.log.count("cancelled") == 2
        assert "closed" in bus.service.log


async def anext_after(stream: aio.AsyncStream) -> Any:
    """Wait for the second item."""
    assert await anext(stream) == 1
    task = asyncio.current_task()
    assert task is not None
    task.set_name("waits")
    return await anext(stream)


@on_loop
async def test_what_is_cancelled_under_at_least_once_runs_on_another_server(fake_url: str) -> None:
    """The message system gives the request to another server, and the client gets that one's answer."""
    conf = await conf_with(rpc_delivery="at_least_once")
    first, second = Service(), Service()
    second.may_go = True
    async with two_servers(conf, fake_url, first, second) as (server, other, client):
        call = asyncio.create_task(client.call({}, "nap", value=1))
        await client.cast({}, "nap")
        await until(lambda: first.log == ["began", "began"])
        await other.start()
        assert await server.wait(0.0) == 2
        assert first.log.count("cancelled") == 2
        assert await call == 1
        await until(lambda: second.log.count("ended") == 2)
        await other.wait(EVENT_TIMEOUT)


@pytest.mark.parametrize("server", ["aio", "sync"])
@pytest.mark.parametrize("method", ["end", "end_in_task", "plain_end"])
@on_loop
async def test_a_method_may_wait_for_its_own_server(fake_url: str, server: str, method: str) -> None:
    """It waits for the other requests, and not for its own, which is answered; also if others wait for the server."""

    class Ending(Service):
        waits: Any
        loop: asyncio.AbstractEventLoop

        async def end(self, _ctxt: Any) -> int:
            self.log.append("waits")
            await until(lambda: self.log.count("waits") == 2)  # The server takes no more once one waits.
            found: int = await self.waits() if server == "aio" else await asyncio.to_thread(self.waits)
            return found

        async def end_in_task(self, ctxt: Any) -> int:
            return await asyncio.create_task(self.end(ctxt))

        def plain_end(self, _ctxt: Any) -> int:
            self.log.append("waits")
            while self.log.count("waits") < 2:
                time.sleep(0.001)
            if server == "aio":
                found: int = asyncio.run_coroutine_threadsafe(self.waits(), self.loop).result()
                return found
            found = self.waits()
            return found

    service = Ending()
    service.loop = asyncio.get_running_loop()
    async with serving(fake_url, service, server=server) as bus:
        service.waits = bus.server.wait if server == "aio" else bus.blocking_server.wait
        running = asyncio.create_task(bus.client.call({}, "nap", value=1))
        await until(lambda: "began" in service.log)
        ending = [asyncio.create_task(bus.client.call({}, method)) for _ in range(2)]
        await until(lambda: service.log.count("waits") == 2)
        if server == "aio":
            outside = asyncio.create_task(bus.server.wait())
        else:
            outside = asyncio.create_task(asyncio.to_thread(bus.blocking_server.wait))
        await asyncio.sleep(0.05)
        service.may_go = True
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await running == 1
            assert await asyncio.gather(*ending) == [0, 0]
            assert await outside == 0


@on_loop
async def test_an_async_method_that_would_block_its_event_loop_is_told_the_way(fake_url: str) -> None:
    """It may not call `wait` of a server for threads itself. The server goes on serving."""

    class Ending(Service):
        server: msgbus.RPCServer

        async def end(self, _ctxt: Any) -> None:
            self.server.wait()

    service = Ending()
    async with serving(fake_url, service, server="sync") as bus:
        service.server = bus.blocking_server
        with pytest.raises(msgbus.MessagingException, match=r"await asyncio\.to_thread\(server\.wait\)"):
            await bus.client.call({}, "end")
        assert await bus.client.call({}, "echo", value=1) == 1


@on_loop
async def test_a_server_that_was_stopped_is_not_started_before_it_was_waited_for(fake_url: str) -> None:
    """It serves nothing meanwhile, so `start` must not return as if it did. The error says what to do."""
    async with serving(fake_url) as bus:
        await bus.server.stop()
        with pytest.raises(msgbus.MessagingException, match=r"was stopped: call wait\(\) before start\(\)"):
            await bus.server.start()
        assert await bus.server.wait() == 0
        await bus.server.start()
        assert await bus.client.call({}, "echo", value=1) == 1


@on_loop
async def test_a_second_wait_with_less_time_ends_the_first(fake_url: str) -> None:
    """As when a program that waits for its requests is asked to end at once."""
    async with serving(fake_url) as bus:
        call = asyncio.create_task(bus.client.call({}, "nap"))
        await until(lambda: "began" in bus.service.log)
        patient = asyncio.create_task(bus.server.wait())
        await asyncio.sleep(0.01)
        assert await bus.server.wait(0.0) == 1
        async with asyncio.timeout(EVENT_TIMEOUT):
            await patient
        with pytest.raises(msgbus.CallCancelled):
            await call


@on_loop
async def test_a_wait_that_is_cancelled_can_be_called_again(fake_url: str) -> None:
    """It cancels no request."""
    async with serving(fake_url) as bus:
        call = asyncio.create_task(bus.client.call({}, "nap", value=1))
        await until(lambda: "began" in bus.service.log)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await bus.server.wait()
        bus.service.may_go = True
        assert await call == 1
        assert await bus.server.wait(EVENT_TIMEOUT) == 0
        assert await bus.server.wait(EVENT_TIMEOUT) == 0


@pytest.mark.parametrize("server", ["aio", "sync"])
@on_loop
async def test_a_method_that_cannot_be_cancelled_keeps_nobody(fake_url: str, server: str) -> None:
    """`wait` with a timeout returns a second later at most, though the method swallows each cancellation."""

    class Stubborn(Service):
        async def stay(self, _ctxt: Any) -> None:
            self.log.append("began")
            while not self.may_go:
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    self.log.append("swallowed")

    async with serving(fake_url, Stubborn(), server=server) as bus:
        call = asyncio.create_task(bus.client.call({}, "stay"))
        await until(lambda: "began" in bus.service.log)
        async with asyncio.timeout(EVENT_TIMEOUT):
            if server == "aio":
                assert await bus.server.wait(0.0) == 1
            else:
                assert await asyncio.to_thread(bus.blocking_server.wait, 0.0) == 1
        assert "swallowed" in bus.service.log
        bus.service.may_go = True
        await asyncio.wait([call], timeout=EVENT_TIMEOUT)
        assert call.done()
        call.exception()


@on_loop
async def test_what_has_not_begun_is_given_to_others_when_a_server_stops(fake_url: str) -> None:
    """Requests that wait for a free task are run by another server."""
    conf = await conf_with(executor_tasks=1, rpc_prefetch=10)
    first, second = Service(), Service()
    async with two_servers(conf, fake_url, first, second) as (server, other, client):
        nap = asyncio.create_task(client.call({}, "nap", value=0))
        await until(lambda: first.log == ["began"])
        calls = [asyncio.create_task(client.call({}, "echo", value=number)) for number in range(5)]
        executor = server._executor
        assert executor is not None
        await until(lambda: executor.unfinished == 6)
        await other.start()
        await server.stop()
        assert await asyncio.gather(*calls) == list(range(5))
        assert not nap.done()
        first.may_go = True
        assert await nap == 0
        assert await server.wait(EVENT_TIMEOUT) == 0
        assert await other.wait(EVENT_TIMEOUT) == 0


@on_loop
async def test_fanouts_that_have_not_begun_are_run_before_the_server_ends(fake_url: str) -> None:
    """Nobody else has them: so they are run one after another, however few tasks there may be."""
    async with serving(fake_url, executor_tasks=1) as bus:
        await bus.client.fanout_cast({}, "nap")
        await until(lambda: bus.service.log == ["began"])
        for number in range(5):
            await bus.client.fanout_cast({}, "note", value=number)
        await asyncio.sleep(0.02)
        waiting = asyncio.create_task(bus.server.wait())
        await asyncio.sleep(0.02)
        bus.service.may_go = True
        assert await waiting == 0
        assert bus.service.log == ["began", "ended", 0, 1, 2, 3, 4]


@on_loop
async def test_stop_ends_a_start_that_waits(fake_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`start` raises at once, and not when its time is over; then the server can be started again."""
    from msgbus.drivers.toolkit.futures import LightFuture, fail

    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        server = aio.get_rpc_server(transport, SERVER, [Service()])
        subscribe = transport.driver.subscribe

        def never(*args: Any, **kwargs: Any) -> Any:
            subscription = subscribe(*args, **kwargs)
            subscription.ready, close = LightFuture(), subscription.close

            def closed() -> Any:  # As the contract says.
                fail(subscription.ready, msgbus.CallCancelled("it was closed"))
                return close()

            subscription.close = closed  # type: ignore[method-assign]
            return subscription

        monkeypatch.setattr(transport.driver, "subscribe", never)
        starting = asyncio.create_task(server.start(1000.0))
        await until(lambda: server._subscription is not None)
        await server.stop()
        with pytest.raises(msgbus.CallCancelled):
            await asyncio.wait_for(starting, EVENT_TIMEOUT)
        monkeypatch.undo()
        async with server:
            assert await aio.get_rpc_client(transport, TOPIC).call({}, "echo", value=1) == 1


@on_loop
async def test_a_server_that_is_stopped_before_it_listens_never_does(
    fake_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While `start` waits for the message system another task stops it: it does not serve when that comes."""
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        server = aio.get_rpc_server(transport, SERVER, [Service()])

        async def stopped_meanwhile(deadline: float, whose: object) -> str:
            await server.stop()
            monkeypatch.undo()
            return await transport.inbox(deadline, whose)

        monkeypatch.setattr(transport, "inbox", stopped_meanwhile)
        with pytest.raises(msgbus.CallCancelled, match="was stopped before it was started"):
            await server.start()
        assert "not serving" in repr(server)
        async with server:
            assert await aio.get_rpc_client(transport, TOPIC).call({}, "echo", value=1) == 1


@on_loop
async def test_a_start_that_is_cancelled_or_late_leaves_a_server_that_can_be_started(
    fake_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is subscribed then, and no task is left."""
    from msgbus.drivers.toolkit.futures import LightFuture

    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        server = aio.get_rpc_server(transport, SERVER, [Service()])
        subscribe = transport.driver.subscribe

        def never(*args: Any, **kwargs: Any) -> Any:
            subscription = subscribe(*args, **kwargs)
            subscription.ready = LightFuture()
            return subscription

        monkeypatch.setattr(transport.driver, "subscribe", never)
        with pytest.raises(msgbus.TransportUnavailable, match="cannot listen"):
            await server.start(0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await server.start()
        monkeypatch.undo()
        assert "not serving" in repr(server)
        async with server:
            assert await aio.get_rpc_client(transport, TOPIC).call({}, "echo", value=1) == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}


@on_loop
async def test_a_start_that_is_cancelled_twice_leaves_a_server_that_can_be_started(zmq_url: str) -> None:
    """Wherever it was then; `start` neither says that it serves, nor does it wait for what was closed."""
    async with aio.get_rpc_transport(await conf_with(), zmq_url) as transport:
        client = aio.get_rpc_client(transport, TOPIC, timeout=EVENT_TIMEOUT)
        server = aio.get_rpc_server(transport, SERVER, [Service()])
        turns, ended = 0, False
        while not ended:
            starting = asyncio.create_task(server.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            ended = starting.done()
            starting.cancel()
            await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
            await server.start()
            assert await client.call({}, "echo", value=turns) == turns
            assert await server.wait(EVENT_TIMEOUT) == 0
            turns += 1


def test_the_thread_of_a_servers_event_loop_does_not_keep_a_program(fake_url: str) -> None:
    """Where a server for threads is never stopped, nothing waits for its event loop at the end of the program."""
    before = set(threading.enumerate())
    transport = msgbus.get_rpc_transport(new_conf(), fake_url)
    server = msgbus.get_rpc_server(transport, SERVER, [Service()])
    server.start()
    added = set(threading.enumerate()) - before
    assert added
    assert all(thread.daemon for thread in added)
    assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()
    assert LONG
