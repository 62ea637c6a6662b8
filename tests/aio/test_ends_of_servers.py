"""How servers of async methods end where something does not go as it should."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import msgbus
from msgbus import aio
from msgbus.drivers.toolkit.futures import LightFuture
from tests.aio.support import SERVER, TOPIC, Service, conf_with, on_loop, serving, two_servers, until
from tests.support import EVENT_TIMEOUT, new_conf


class SlowToConfirm:
    """Has a server's message system confirm that it has stopped delivering only when the test says so."""

    def __init__(self, server: aio.AsyncRPCServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = False
        self._confirmed: LightFuture[None] = LightFuture()
        subscription: Any = server._subscription
        stop = subscription.stop

        def stop_slowly() -> LightFuture[None]:
            stop()
            self.asked = True
            return self._confirmed

        monkeypatch.setattr(subscription, "stop", stop_slowly)

    def confirm(self) -> None:
        self._confirmed.set_result(None)


@on_loop
async def test_a_wait_begun_while_a_stop_is_not_confirmed_waits_for_that(
    fake_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both return, and what has not begun is given back before the server ends."""
    async with serving(fake_url, executor_tasks=1) as bus:
        slow = SlowToConfirm(bus.server, monkeypatch)
        await bus.client.cast({}, "nap")
        await until(lambda: "began" in bus.service.log)
        stopping = asyncio.create_task(bus.server.stop())
        await until(lambda: slow.asked)
        waiting = asyncio.create_task(bus.server.wait(0.0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        slow.confirm()
        async with asyncio.timeout(EVENT_TIMEOUT):
            await stopping
            assert await waiting == 1


@on_loop
async def test_a_stop_that_is_cancelled_has_stopped_the_server(fake_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other servers get what has not begun, and casts that are to be run again; `wait` returns."""
    raised = threading.Event()

    class Failing(Service):
        async def work(self, _ctxt: Any) -> None:
            raised.set()
            raise ZeroDivisionError

    first, second = Failing(), Failing()
    second.may_go = True
    conf = await conf_with(executor_tasks=1)
    async with two_servers(conf, fake_url, first, second) as (server, other, client):
        await client.prepare(delivery="at_least_once").cast({}, "work")
        await until(raised.is_set)
        nap = asyncio.create_task(client.call({}, "nap", value=0))
        await until(lambda: first.log == ["began"])
        echo = asyncio.create_task(client.call({}, "echo", value=1))
        await asyncio.sleep(0.05)
        await other.start()
        raised.clear()
        slow = SlowToConfirm(server, monkeypatch)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await server.stop()
        assert slow.asked
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await echo == 1
            await until(raised.is_set)
            first.may_go = True
            assert await nap == 0
            assert await server.wait() == 0
            await other.wait(EVENT_TIMEOUT)


def test_a_method_that_blocks_its_event_loop_does_not_keep_whoever_waits(fake_url: str) -> None:
    """`wait` of a server for threads returns when its time is over, and counts the request."""
    began, go_on = threading.Event(), threading.Event()

    class Blocking:
        async def block(self, _ctxt: Any) -> None:
            began.set()
            go_on.wait(2 * EVENT_TIMEOUT)

    transport = msgbus.get_rpc_transport(new_conf(), fake_url)
    server = msgbus.get_rpc_server(transport, SERVER, [Blocking()])
    server.start()
    try:
        msgbus.get_rpc_client(transport, TOPIC).cast({}, "block")
        assert began.wait(EVENT_TIMEOUT)
        abandoned: list[int] = []
        waiting = threading.Thread(target=lambda: abandoned.append(server.wait(0.05)), daemon=True)
        waiting.start()
        waiting.join(EVENT_TIMEOUT)
        assert abandoned == [1]
    finally:
        go_on.set()
        transport.cleanup()


def test_a_server_whose_event_loop_cannot_be_made_says_so(fake_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the process may open no more files. It can be started later."""

    def refuse() -> asyncio.AbstractEventLoop:
        raise OSError(24, "Too many open files")

    transport = msgbus.get_rpc_transport(new_conf(), fake_url)
    server = msgbus.get_rpc_server(transport, SERVER, [Service()])
    errors: list[BaseException] = []

    def start() -> None:
        try:
            server.start()
        except BaseException as exc:
            errors.append(exc)

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.events, "new_event_loop", refuse)
        starting = threading.Thread(target=start, daemon=True)
        starting.start()
        starting.join(EVENT_TIMEOUT)
    assert [type(error) for error in errors] == [msgbus.TransportUnavailable]
    assert "Too many open files" in str(errors[0])
    server.start()
    assert msgbus.get_rpc_client(transport, TOPIC).call({}, "echo", value=1) == 1
    assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()


@on_loop
async def test_a_request_that_has_just_become_a_task_when_time_is_over_is_settled(
    fake_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the server, if it is started again, would take a redelivery for a duplicate of it, and never end."""
    async with serving(fake_url, executor_tasks=1) as bus:
        await bus.client.fanout_cast({}, "nap")
        await until(lambda: bus.service.log == ["began"])
        await bus.client.fanout_cast({}, "sleep")
        executor: Any = bus.server._executor
        await until(lambda: executor._backlog)
        wait = asyncio.wait

        async def wait_and_begin(*args: Any, **kwargs: Any) -> Any:
            found = await wait(*args, **kwargs)
            executor._limit = 2  # As where another request has ended in that moment.
            executor._run_backlog()
            return found

        monkeypatch.setattr(asyncio, "wait", wait_and_begin)
        await bus.server.wait(0.0)
        assert list(bus.server._processor.calls) == []
        monkeypatch.undo()


@pytest.mark.parametrize("server", ["aio", "sync"])
@pytest.mark.parametrize("verb", ["call", "cast"])
@on_loop
async def test_what_is_cancelled_is_answered_or_passed_on_before_wait_returns(
    fake_url: str, server: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards the program closes the transport, and what the message system has not confirmed would be lost."""
    async with serving(
        fake_url, server=server, rpc_delivery="at_least_once" if verb == "cast" else "at_most_once"
    ) as bus:
        begun = asyncio.create_task(getattr(bus.client, verb)({}, "nap"))
        await until(lambda: "began" in bus.service.log)
        found: Any = bus.server if server == "aio" else bus.blocking_server
        send = found.transport.driver.send
        outcomes: list[str] = []

        def confirm_late(*args: Any, **kwargs: Any) -> LightFuture[Any]:
            sent = send(*args, **kwargs)
            late: LightFuture[Any] = LightFuture()

            def confirm() -> None:
                outcomes.append("confirmed")
                late.set_result(sent.result(EVENT_TIMEOUT))

            found.transport.loop.call_later(0.2, confirm)
            return late

        monkeypatch.setattr(found.transport.driver, "send", confirm_late)
        if server == "aio":
            assert await bus.server.wait(0.0) == 1
        else:
            assert await asyncio.to_thread(bus.blocking_server.wait, 0.0) == 1
        assert outcomes[:1] == ["confirmed"]
        assert list(found._processor.calls) == []
        await asyncio.wait([begun])
        begun.exception()
