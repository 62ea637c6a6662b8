"""What becomes of a call whose caller does not wait for it any more."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import msgbus
from msgbus import aio
from msgbus.drivers.toolkit.futures import LightFuture
from msgbus.drivers.toolkit.loop import Loop
from tests.aio.support import LONG, TOPIC, Bus, Service, conf_with, on_loop, serving, until
from tests.support import EVENT_TIMEOUT, new_conf

METHODS = ["nap", "plain_nap"]


async def cancel_task(bus: Bus, method: str) -> None:  # noqa: D103 - its name says it
    task = asyncio.create_task(bus.client.call({}, method))
    await until(lambda: "began" in bus.service.log)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def end_by_asyncio_timeout(bus: Bus, method: str) -> None:  # noqa: D103 - its name says it
    for seconds in until_it_began(bus):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await bus.client.call({}, method)


async def end_by_own_timeout(bus: Bus, method: str) -> None:  # noqa: D103 - its name says it
    for seconds in until_it_began(bus):
        with pytest.raises(msgbus.MessagingTimeout):
            await bus.client.prepare(timeout=seconds).call({}, method)


async def end_by_blocking_timeout(bus: Bus, method: str) -> None:  # noqa: D103 - its name says it
    for seconds in until_it_began(bus):
        with pytest.raises(msgbus.MessagingTimeout):
            await asyncio.to_thread(bus.blocking.prepare(timeout=seconds).call, {}, method)


def until_it_began(bus: Bus) -> Iterator[float]:
    """Ever longer times for a call, until the server has begun one: a busy machine needs more for that."""
    seconds = 0.05
    while "began" not in bus.service.log and seconds < EVENT_TIMEOUT:
        yield seconds
        seconds *= 2


async def end_by_failing_group(bus: Bus, method: str) -> None:  # noqa: D103 - its name says it
    async def fail() -> None:
        await until(lambda: "began" in bus.service.log)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:  # noqa: PT012 - a block is what is tested
        async with asyncio.TaskGroup() as group:
            group.create_task(bus.client.call({}, method))
            group.create_task(fail())
    assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("server", ["aio", "sync"])
@pytest.mark.parametrize(
    "end",
    [cancel_task, end_by_asyncio_timeout, end_by_own_timeout, end_by_blocking_timeout, end_by_failing_group],
)
@on_loop
async def test_a_call_that_nobody_waits_for_is_cancelled_on_the_server(
    fake_url: str, server: str, method: str, end: Callable[[Bus, str], Coroutine[Any, Any, None]]
) -> None:
    """An async method gets `CancelledError`, a plain one sees that its request is cancelled.

    So also where the caller stops before the server has said that it runs the call.
    """
    async with serving(fake_url, server=server) as bus:
        await end(bus, method)
        await until(lambda: "cancelled" in bus.service.log)
        assert bus.client.transport.window.idle
        assert not len(bus.client.transport.router)


@pytest.mark.parametrize("method", METHODS)
@on_loop
async def test_a_call_is_cancelled_on_the_server_over_sockets(zmq_url: str, method: str) -> None:
    """The same over a real connection, also once the server has said that it runs the call."""
    async with serving(zmq_url) as bus:
        for client in (bus.client, None):
            bus.service.log.clear()
            if client is None:
                with pytest.raises(msgbus.MessagingTimeout):
                    await asyncio.to_thread(bus.blocking.prepare(timeout=0.5).call, {}, method)
            else:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await client.call({}, method)
            await until(lambda: "cancelled" in bus.service.log)


@on_loop
async def test_a_method_may_clean_up_when_it_is_cancelled(fake_url: str) -> None:
    """What it awaits in its `finally` is awaited, and its server goes on serving."""

    class Cleaning:
        def __init__(self) -> None:
            self.log: list[str] = []
            self.go_on = threading.Event()

        async def work(self, _ctxt: Any) -> None:
            try:
                self.log.append("began")
                await asyncio.sleep(LONG)
            finally:
                await asyncio.sleep(0.01)
                self.log.append("cleaned")

        async def echo(self, _ctxt: Any) -> int:
            return 1

    service = Cleaning()
    async with serving(fake_url, service) as bus:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await bus.client.call({}, "work")
        await until(lambda: service.log == ["began", "cleaned"])
        assert await bus.client.call({}, "echo") == 1


@on_loop
async def test_a_method_that_swallows_its_cancellation_is_not_answered(fake_url: str) -> None:
    """It runs on, its result goes nowhere, and the server does not wait for it afterwards."""

    class Stubborn:
        def __init__(self) -> None:
            self.log: list[str] = []
            self.go_on = threading.Event()

        async def work(self, _ctxt: Any) -> int:
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                self.log.append("swallowed")
            await asyncio.sleep(0)
            self.log.append("ended")
            return 1

    service = Stubborn()
    async with serving(fake_url, service) as bus:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await bus.client.call({}, "work")
        await until(lambda: service.log == ["swallowed", "ended"])
        assert await bus.server.wait(EVENT_TIMEOUT) == 0


@on_loop
async def test_a_caller_that_is_cancelled_while_its_request_is_sent_leaves_nothing(
    fake_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call and a cast whose sending is not confirmed yet give back their places, and the call is forgotten."""
    async with serving(fake_url) as bus:
        await bus.client.call({}, "echo", value=1)
        transport = bus.client.transport
        monkeypatch.setattr(transport.driver, "send", lambda *_args, **_kwargs: LightFuture())
        for verb in (bus.client.call({}, "note", value=1), bus.client.cast({}, "note", value=1)):
            task = asyncio.create_task(verb)
            await until(lambda: not transport.window.idle)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert transport.window.idle
            assert not len(transport.router)


@on_loop
async def test_the_request_of_a_call_that_is_cancelled_before_it_began_is_let_go(fake_url: str) -> None:
    """What is kept until its deadline, in order to cancel it on the server, is small."""
    arrived: list[Any] = []
    conf = await conf_with()
    async with aio.get_rpc_transport(conf, fake_url) as served, aio.get_rpc_transport(conf, fake_url) as transport:
        served.driver.subscribe([served.address(TOPIC)], arrived.append, prefetch=10)
        client = aio.get_rpc_client(transport, TOPIC, timeout=LONG, delivery="at_least_once")
        task = asyncio.create_task(client.call({}, "echo", value="x" * 1_000_000))
        await until(lambda: arrived)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kept: list[Any] = [getattr(cancel, "__self__") for cancel in transport.router._abandoned.values()]  # noqa: B009
        assert [call.pending.request for call in kept] == [None]


@on_loop
async def test_a_caller_that_is_cancelled_while_it_waits_for_a_place_sends_nothing(fake_url: str) -> None:
    """Neither a call nor a cast that waits for the send window is sent, and the place goes to the next one."""
    async with serving(fake_url, rpc_send_window=1) as bus:
        first = asyncio.create_task(bus.client.call({}, "nap", value=1))
        await until(lambda: "began" in bus.service.log)
        waiting = [
            asyncio.create_task(bus.client.call({}, "note", value="call")),
            asyncio.create_task(bus.client.cast({}, "note", value="cast")),
        ]
        last = asyncio.create_task(bus.client.call({}, "echo", value=2))
        await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert all(task.cancelled() for task in waiting)
        bus.service.may_go = True
        assert (await first, await last) == (1, 2)
        assert bus.service.log == ["began", "ended"]
        assert bus.client.transport.window.idle


@on_loop
async def test_a_place_that_a_cancelled_task_was_just_given_goes_to_the_next(fake_url: str) -> None:
    """A task that is cancelled in the moment in which it gets its place does not keep it."""
    async with serving(fake_url) as bus:
        window = bus.client.transport.window
        while window.take():
            pass
        place, address = bus.client.transport.slot, bus.client.transport.address(TOPIC)
        tasks = [asyncio.create_task(place(Loop.now() + 20, "echo", address)) for _ in range(2)]
        await asyncio.sleep(0)
        window.release()
        tasks[0].cancel()
        assert await tasks[1] is window
        assert tasks[0].cancelled()


@on_loop
async def test_a_call_that_waits_for_the_message_system_can_be_cancelled(fake_url: str) -> None:
    """Before the inbox is open nothing was sent, and nothing stays behind."""
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        never: LightFuture[None] = LightFuture()
        inbox = transport._inbox.begin()
        inbox.ready = never
        client = aio.get_rpc_client(transport, TOPIC, timeout=LONG)
        tasks = [asyncio.create_task(client.call({}, "echo")) for _ in range(3)]
        await until(lambda: len(never._done_callbacks) == 3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert never._done_callbacks == []
        assert transport.window.idle


def test_ctrl_c_in_a_blocking_call_cancels_it_on_the_server(fake_url: str) -> None:
    """A client for threads that is interrupted while it waits cancels its call, which the server runs or will run."""
    began = threading.Event()
    cancelled = threading.Event()

    class Slow:
        async def work(self, _ctxt: Any) -> None:
            began.set()
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    conf = new_conf()
    served, transport = msgbus.get_rpc_transport(conf, fake_url), msgbus.get_rpc_transport(conf, fake_url)
    server = msgbus.get_rpc_server(served, msgbus.Target(topic="t", server="one"), [Slow()])
    server.start()
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert began.wait(EVENT_TIMEOUT)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        msgbus.get_rpc_client(transport, TOPIC, timeout=LONG).call({}, "work")
    assert cancelled.wait(EVENT_TIMEOUT)
    server.stop()
    assert server.wait(EVENT_TIMEOUT) == 0
    transport.cleanup()
    served.cleanup()


@on_loop
async def test_a_cast_is_not_cancelled(fake_url: str) -> None:
    """A cast whose sender ends runs on: nobody waits for it."""
    async with serving(fake_url) as bus:
        await bus.client.cast({}, "nap")
        await until(lambda: "began" in bus.service.log)
        await bus.client.transport.aclose()
        bus.service.may_go = True
        await until(lambda: "ended" in bus.service.log)


@pytest.mark.parametrize("client", ["aio", "sync"])
@on_loop
async def test_a_request_that_the_server_begins_after_its_caller_has_gone_is_cancelled(
    fake_url: str, client: str
) -> None:
    """A call that waits for a free task when its caller stops waiting is cancelled, or not begun."""
    async with serving(fake_url, executor_tasks=1) as bus:
        await bus.client.cast({}, "nap")
        await until(lambda: bus.service.log == ["began"])
        if client == "aio":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await bus.client.call({}, "sleep")
        else:
            with pytest.raises(msgbus.MessagingTimeout):
                await asyncio.to_thread(bus.blocking.prepare(timeout=0.5).call, {}, "sleep")
        bus.service.may_go = True
        if client == "aio":
            await until(lambda: bus.service.log == ["began", "ended", "asleep", "cancelled"])
        else:  # Its deadline came along with it.
            assert await bus.server.wait(EVENT_TIMEOUT) == 0
            assert bus.service.log == ["began", "ended"]


@pytest.mark.parametrize("server", ["aio", "sync"])
@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@on_loop
async def test_a_method_that_cancels_its_own_task_is_not_run_for_ever(
    fake_url: str, server: str, delivery: str, retries_at_once: None
) -> None:
    """Under at_least_once it is tried again: a call once, a cast as often as one that raises."""

    class Ending(Service):
        async def end(self, _ctxt: Any) -> None:
            self.log.append("ran")
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(LONG)

    options: dict[str, Any] = {"rpc_delivery": delivery, "rpc_cast_retries": 2}
    async with serving(fake_url, Ending(), server=server, **options) as bus:
        with pytest.raises(msgbus.CallCancelled, match="its task was cancelled"):
            await bus.client.call({}, "end")
        assert len(bus.service.log) == (1 if delivery == "at_most_once" else 2)
        bus.service.log.clear()
        await bus.client.cast({}, "end")
        await until(lambda: len(bus.service.log) == (1 if delivery == "at_most_once" else 3))
        assert await bus.client.call({}, "echo", value=1) == 1
        await asyncio.sleep(0.1)
        assert len(bus.service.log) == (1 if delivery == "at_most_once" else 3)
