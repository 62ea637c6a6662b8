"""The send window of tasks, thousands of calls at once, and the ends of waits."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import traceback
import tracemalloc
from concurrent.futures import Future
from typing import Any

import pytest

import msgbus
from msgbus import aio
from msgbus.aio.waiting import GRAIN, HORIZON, Deadlines, Waiter
from msgbus.drivers.base import Driver, Inbox, OnDelivery
from msgbus.drivers.toolkit.futures import LightFuture, done, fail
from msgbus.drivers.toolkit.loop import Loop
from tests.aio.support import LONG, TOPIC, conf_with, on_loop, serving, until
from tests.support import EVENT_TIMEOUT, ROOT, new_conf, standing_clock

MANY = 10_000


@on_loop
async def test_tasks_get_places_in_the_order_in_which_they_came(fake_url: str) -> None:
    """Also where each place becomes free while others wait."""
    async with serving(fake_url, rpc_send_window=2, executor_tasks=1) as bus:
        calls = [asyncio.create_task(bus.client.call({}, "note", value=number)) for number in range(20)]
        await asyncio.gather(*calls)
        assert bus.service.log == list(range(20))


@on_loop
async def test_a_task_that_calls_again_and_again_leaves_places_to_others(fake_url: str) -> None:
    """A place that becomes free goes to who waits for it, and not to whoever has just given it back."""
    async with serving(fake_url, rpc_send_window=1) as bus:
        made: list[str] = []

        async def work(name: str) -> None:
            for _ in range(10):
                await bus.client.call({}, "echo", value=1)
                made.append(name)

        await asyncio.gather(work("a"), work("b"))
        assert made == ["a", "b"] * 10


@on_loop
async def test_a_place_that_does_not_become_free_in_time_is_a_timeout(fake_url: str) -> None:
    """It says how many requests are unfinished, and that nothing was sent; later calls find the places."""
    async with serving(fake_url, rpc_send_window=2) as bus:
        running = [asyncio.create_task(bus.client.call({}, "nap", value=1)) for _ in range(2)]
        await until(lambda: bus.service.log == ["began", "began"])
        hasty = bus.client.prepare(timeout=0.5)
        for verb in (hasty.call({}, "note", value=1), hasty.cast({}, "note", value=1)):
            with pytest.raises(msgbus.MessagingTimeout, match=r"2 requests .* still unfinished .* nothing was sent"):
                await verb
        with pytest.raises(msgbus.CastsFailed):
            await hasty.cast_many({}, [("note", {"value": 1})])
        bus.service.may_go = True
        assert await asyncio.gather(*running) == [1, 1]
        assert await bus.client.call({}, "echo", value=2) == 2
        assert bus.service.log.count(1) == 0
        assert bus.client.transport.window.idle


@on_loop
async def test_a_place_that_another_thread_gives_back_goes_to_a_task(fake_url: str) -> None:
    """A driver may finish messages on a thread of its own."""
    async with aio.get_rpc_transport(await conf_with(rpc_send_window=1), fake_url) as transport:
        window = await transport.slot(Loop.now() + EVENT_TIMEOUT, "echo", transport.address(TOPIC))
        task = asyncio.create_task(transport.slot(Loop.now() + EVENT_TIMEOUT, "echo", transport.address(TOPIC)))
        await asyncio.sleep(0)
        thread = threading.Thread(target=window.release)
        thread.start()
        assert await task is window
        thread.join()
        assert not window.take()
        window.release()
        assert window.idle


@on_loop
async def test_cast_many_leaves_room_for_others(fake_url: str) -> None:
    """However many casts there are, half of the window is free for calls meanwhile."""
    async with serving(fake_url, rpc_send_window=4, executor_tasks=1000) as bus:
        window = bus.client.transport.window
        most = 0

        def requests() -> Any:
            nonlocal most
            for number in range(200):
                most = max(most, window.size - len(window._places))
                yield "note", {"value": number}

        casting = asyncio.create_task(bus.client.cast_many({}, requests()))
        assert await bus.client.call({}, "echo", value=1) == 1
        assert await casting == 200
        assert most <= 2
        await until(lambda: len(bus.service.log) == 200)


async def hold_many() -> None:
    """Have 10,000 calls wait at once, and check what that takes. In a process of its own: see the test."""
    arrived: list[Any] = []
    conf = new_conf(rpc_send_window=2 * MANY)
    url = "fake://many/"
    async with aio.get_rpc_transport(conf, url) as served, aio.get_rpc_transport(conf, url) as transport:
        served.driver.subscribe([served.address(TOPIC)], arrived.append, prefetch=2 * MANY)
        client = aio.get_rpc_client(transport, TOPIC, timeout=LONG)
        host: Any = asyncio.get_running_loop()
        threads = threading.active_count()
        tracemalloc.start()
        calls = [asyncio.create_task(client.call({}, "hold", value=number)) for number in range(MANY)]
        await until(lambda: len(arrived) == MANY, 60.0)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert used < 40e6, f"{used} bytes"
        assert threading.active_count() == threads, threading.enumerate()
        assert len(asyncio.all_tasks()) == MANY + 1, "the callers', and this one"
        assert len([timer for timer in host._scheduled if not timer.cancelled()]) < 10
        assert len(transport.loop._timers) < MANY / 10, f"{len(transport.loop._timers)} timers"
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert transport.window.idle
        assert not any(transport.deadlines._waits.values())


def test_thousands_of_calls_in_flight_need_no_thread_task_or_timer_each() -> None:
    """10,000 calls that wait at once take less than 40 MB, with the tasks that make them and what the bus holds.

    Threads and memory are counted where no other test has left any, and nothing measures coverage.
    """
    code = "import asyncio; from tests.aio.test_window import hold_many; asyncio.run(hold_many())"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert run.returncode == 0, run.stderr


@on_loop
async def test_each_call_has_an_error_of_its_own_when_its_transport_is_closed(fake_url: str) -> None:
    """It says which call it was, and its traceback is of this call alone."""
    arrived: list[Any] = []
    async with aio.get_rpc_transport(await conf_with(), fake_url) as served:
        served.driver.subscribe([served.address(TOPIC)], arrived.append, prefetch=100)
        async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
            client = aio.get_rpc_client(transport, TOPIC, timeout=LONG)
            calls = [asyncio.create_task(client.call({}, f"hold{number}")) for number in range(50)]
            await until(lambda: len(arrived) == 50)
        ends = await asyncio.gather(*calls, return_exceptions=True)
    for number, end in enumerate(ends):
        assert isinstance(end, msgbus.CallCancelled)
        assert f"'hold{number}' on " in str(end)
        assert "was closed" in str(end)
        assert len(traceback.extract_tb(end.__traceback__)) < 10


class RefusedInboxes:
    """Stands in for the `open_inbox` of a driver whose message system refuses the first inbox, and may allow others.

    Attributes:
        first: the first one.
        opened: how many were asked for.
        closed: how many were closed.
    """

    def __init__(self, driver: Driver) -> None:
        self._open = driver.open_inbox
        self.first = self._open(lambda _delivery: None)
        self.first.ready = LightFuture()
        self.first.close = self._close  # type: ignore[method-assign]
        self.opened = self.closed = 0
        driver.open_inbox = self.open_inbox  # type: ignore[method-assign]

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        self.opened += 1
        return self.first if self.opened == 1 else self._open(on_delivery)

    def refuse(self) -> None:
        """Refuse the first one, now."""
        fail(self.first.ready, msgbus.TransportUnavailable("no right to open an inbox"))

    def _close(self) -> Future[None]:
        self.closed += 1
        return done()


@on_loop
async def test_an_inbox_that_is_refused_is_opened_once_more_for_all(fake_url: str) -> None:
    """Each caller gets the error, which does not grow with their number. Those that try again share the next inbox."""
    async with serving(fake_url) as bus:
        inboxes = RefusedInboxes(bus.client.transport.driver)
        frames: list[int] = []

        async def call() -> Any:
            try:
                return await bus.client.call({}, "echo", value=1)
            except msgbus.TransportUnavailable as exc:
                frames.append(len(traceback.extract_tb(exc.__traceback__)))
                return await bus.client.call({}, "echo", value=2)

        calls = [asyncio.create_task(call()) for _ in range(50)]
        await until(lambda: inboxes.opened)
        inboxes.refuse()
        assert await asyncio.gather(*calls) == [2] * 50
        assert len(frames) == 50
        assert max(frames) < 10
        assert (inboxes.opened, inboxes.closed) == (2, 1)


@on_loop
async def test_a_caller_whose_time_is_over_as_the_inbox_opens_leaves_it_open(fake_url: str) -> None:
    """Others may use it already."""
    async with serving(fake_url) as bus:
        transport = bus.client.transport
        await transport.inbox(Loop.now() + EVENT_TIMEOUT)
        transport._inbox.on_failed(transport._inbox.begin())
        assert await bus.client.call({}, "echo", value=2) == 2


@on_loop
async def test_who_waits_for_a_place_is_told_that_the_transport_was_closed(fake_url: str) -> None:
    """Also where streams that nobody reads keep the places. So is who comes later."""
    async with serving(fake_url, rpc_send_window=1) as bus:
        stream = bus.client.multicall({}, "drip")
        assert await anext(stream) == 1
        verbs = (lambda: bus.client.call({}, "echo", value=1), lambda: bus.client.cast({}, "note", value=1))
        waiting = [asyncio.create_task(verb()) for verb in verbs]
        await until(lambda: len(bus.client.transport.window._tasks) == len(verbs))
        await bus.client.transport.aclose()
        async with asyncio.timeout(EVENT_TIMEOUT):
            for end in [*waiting, *(verb() for verb in verbs)]:
                with pytest.raises(msgbus.CallCancelled, match="was closed"):
                    await end
        await stream.aclose()


@on_loop
async def test_waits_end_at_their_deadline_when_the_transport_was_closed(fake_url: str) -> None:
    """Those that begin before, and those that begin after it: its loop runs no timers then."""
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        transport.loop.call(int)
        before = asyncio.create_task(transport.wait_for(LightFuture[None](), Loop.now() + 1.0))
        await asyncio.sleep(0)
    async with asyncio.timeout(EVENT_TIMEOUT):
        assert not await before
        assert not await transport.wait_for(LightFuture[None](), Loop.now() + 0.05)


@on_loop
async def test_another_thread_ends_a_wait_when_the_transport_was_closed(fake_url: str) -> None:
    """As a driver may that finishes on a thread of its own what was under way."""
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        transport.loop.call(int)
    future = LightFuture[None]()
    task = asyncio.create_task(transport.wait_for(future, Loop.now() + LONG))
    await asyncio.sleep(0)
    async with asyncio.timeout(EVENT_TIMEOUT):
        await asyncio.to_thread(future.set_result, None)
        assert await task


@on_loop
async def test_waits_end_at_their_deadline_and_not_before(fake_url: str) -> None:
    """Within the grain; waits that end in the same grain share a timer."""
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        loop = transport.loop
        deadlines = Deadlines(loop)
        now = Loop.now()
        untils = [now + 0.001 * number for number in range(200)]
        late: list[float] = []

        async def wait(until: float) -> None:
            await Waiter(deadlines).wait(until)
            late.append(Loop.now() - until)

        waits = [asyncio.create_task(wait(until)) for until in untils]
        await asyncio.sleep(0)
        assert len(loop._timers) <= 0.2 / GRAIN + 2
        await asyncio.gather(*waits)
        assert min(late) >= 0.0
        assert deadlines._waits == {}


@pytest.mark.parametrize("seconds", [0.0, -1.0])
@on_loop
async def test_a_wait_whose_time_is_over_ends_in_the_next_grain(fake_url: str, seconds: float) -> None:
    """It does not wait for ever."""
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        async with asyncio.timeout(EVENT_TIMEOUT):
            await Waiter(transport.deadlines).wait(Loop.now() + seconds)


@on_loop
async def test_far_deadlines_leave_no_timers_behind(fake_url: str) -> None:
    """However long the timeout of calls is that are answered at once, their timers are gone a minute later."""
    async with aio.get_rpc_transport(await conf_with(), fake_url) as transport:
        deadlines = transport.deadlines
        now = Loop.now()
        with standing_clock(deadlines.loop):
            for number in range(100):
                deadlines.add(Waiter(deadlines), now + 1e6 + number)
        (number,) = deadlines._waits
        assert number * GRAIN <= Loop.now() + HORIZON + 2 * GRAIN
        assert deadlines.add(Waiter(deadlines), float("inf")) == {}


@on_loop
async def test_a_call_whose_deadline_is_far_waits_on(fake_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at now and then, and answered."""
    monkeypatch.setattr("msgbus.aio.waiting.HORIZON", 0.02)
    async with serving(fake_url, timeout=LONG, rpc_send_window=1) as bus:
        call = asyncio.create_task(bus.client.call({}, "nap", value=1))
        other = asyncio.create_task(bus.client.call({}, "echo", value=2))
        await asyncio.sleep(0.2)
        assert not call.done()
        assert not other.done()
        bus.service.may_go = True
        assert (await call, await other) == (1, 2)


@pytest.mark.parametrize("kind", ["answered", "failed", "cancelled", "timed out", "streams", "left streams", "casts"])
def test_nothing_is_left_to_the_garbage_collector(fake_url: str, kind: str) -> None:
    """Calls, casts and streams, also those that fail or are cancelled, leave no cycles of objects of msgbus."""

    async def once(bus: Any) -> None:
        client = bus.client
        if kind == "answered":
            await client.call({}, "echo", value=1)
        elif kind == "failed":
            with pytest.raises(KeyError):
                await client.call({}, "fail")
        elif kind == "cancelled":
            task = asyncio.create_task(client.call({}, "sleep"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        elif kind == "timed out":
            with pytest.raises(msgbus.MessagingTimeout):
                await client.prepare(timeout=0.001).call({}, "sleep")
        elif kind == "streams":
            assert len([item async for item in client.multicall({}, "count", to=10)]) == 10
        elif kind == "left streams":
            async with client.multicall({}, "count", to=10**6) as stream:
                await anext(stream)
        else:
            await client.cast({}, "note", value=1)
            await client.cast_many({}, [("note", {"value": 1})] * 3)

    async def main() -> None:
        async with serving(fake_url) as bus:
            for _ in range(3):
                await once(bus)
            await asyncio.sleep(0.3)
            gc.collect()
            gc.disable()
            for _ in range(20):
                await once(bus)
            await asyncio.sleep(0.3)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            gc.set_debug(0)
            ours = [found for found in gc.garbage if type(found).__module__.startswith("msgbus")]
            gc.garbage.clear()
            gc.enable()
            assert [type(found).__name__ for found in ours] == []
            assert bus.client.transport.window.idle
            assert not len(bus.client.transport.router)
            assert asyncio.all_tasks() == {asyncio.current_task()} or kind in ("cancelled", "timed out")

    try:
        asyncio.run(main())
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
