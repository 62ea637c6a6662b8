"""Streams between tasks and asynchronous generators."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import msgbus
from tests.aio.support import LONG, Service, on_loop, serving, until
from tests.support import EVENT_TIMEOUT

GENERATORS = ["count", "plain_count"]


@pytest.mark.parametrize("method", GENERATORS)
@pytest.mark.parametrize("leave", ["aclose", "with", "drop", "cancel"])
@on_loop
async def test_leaving_a_stream_early_closes_the_remote_generator(fake_url: str, method: str, leave: str) -> None:
    """Its `finally` runs when the stream is closed, left, dropped, or its task cancelled."""
    async with serving(fake_url) as bus:
        stream = bus.client.multicall({}, method, to=10**9)
        if leave == "with":
            async with stream:
                async for item in stream:
                    if item == 10:
                        break
        elif leave == "cancel":

            async def consume() -> None:
                async for item in stream:
                    if item == 10:
                        await asyncio.sleep(LONG)

            task = asyncio.create_task(consume())
            await until(lambda: stream._end is not None and stream._pending.taken > 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task, consume, stream
            gc.collect()
        else:
            async for item in stream:
                if item == 10:
                    break
            if leave == "aclose":
                await stream.aclose()
                await stream.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
            else:
                del stream
        await until(lambda: "closed" in bus.service.log)
        await until(lambda: bus.client.transport.window.idle)


@on_loop
async def test_a_generator_that_waits_is_cancelled_when_its_stream_is_closed(url: str) -> None:
    """An asynchronous generator that is awaiting something gets `CancelledError`, and then is closed."""
    async with serving(url) as bus:
        async with bus.client.multicall({}, "drip") as stream:
            assert await anext(stream) == 1
        await until(lambda: bus.service.log == ["cancelled", "closed"])
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await bus.server.wait(EVENT_TIMEOUT) == 0


@on_loop
async def test_a_task_that_is_cancelled_while_it_waits_for_an_item_closes_the_stream(url: str) -> None:
    """So does a timeout of an item, which the client raises."""
    async with serving(url) as bus:
        with pytest.raises(TimeoutError):  # noqa: PT012 - a block is what is tested
            async with asyncio.timeout(1.0):
                async for _ in bus.client.multicall({}, "drip"):
                    pass
        await until(lambda: bus.service.log == ["cancelled", "closed"])
        bus.service.log.clear()
        with pytest.raises(msgbus.MessagingTimeout):
            async for _ in bus.client.prepare(timeout=1.0).multicall({}, "drip"):
                pass
        await until(lambda: bus.service.log == ["cancelled", "closed"])


@on_loop
async def test_a_stream_that_another_task_closes_ends(fake_url: str) -> None:
    """The task that waits for an item of it does not wait on."""
    async with serving(fake_url, timeout=LONG) as bus:
        stream = bus.client.multicall({}, "drip")

        async def consume() -> list[int]:
            return [item async for item in stream]

        task = asyncio.create_task(consume())
        await until(lambda: stream._end is not None and stream._pending.taken == 1)
        await stream.aclose()
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await task == [1]
        await until(lambda: bus.service.log == ["cancelled", "closed"])


@on_loop
async def test_a_stream_that_another_task_closes_before_its_request_is_sent_never_begins(fake_url: str) -> None:
    """While it waited for a place in the send window."""
    async with serving(fake_url, rpc_send_window=1) as bus:
        calling = asyncio.create_task(bus.client.call({}, "nap", value=1))
        await until(lambda: "began" in bus.service.log)
        stream = bus.client.multicall({}, "count", to=3)
        task = asyncio.create_task(anext(stream, "the end"))
        await until(lambda: bus.client.transport.window._tasks)
        await stream.aclose()
        bus.service.may_go = True
        assert await calling == 1
        assert await task == "the end"
        assert await bus.client.call({}, "echo", value=2) == 2
        assert bus.client.transport.window.idle
        assert bus.service.log == ["began", "ended"]


@pytest.mark.parametrize("first", [True, False], ids=["first item", "second item"])
@on_loop
async def test_a_stream_is_for_one_task_at_a_time(fake_url: str, first: bool) -> None:
    """A second task that asks for an item meanwhile gets an error at once; the first one goes on."""
    async with serving(fake_url) as bus:
        stream = bus.client.multicall({}, "count" if first else "drip", **({"to": 1} if first else {}))
        if not first:
            assert await anext(stream) == 1
        task = asyncio.create_task(anext(stream, "the end"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match=r"AsyncStream '(count|drip)' .* another task already waits"):
            await anext(stream)
        if first:
            assert await task == 0
            assert [item async for item in stream] == []
        else:
            await stream.aclose()
            assert await task == "the end"
        await until(lambda: "closed" in bus.service.log)
        await until(lambda: bus.client.transport.window.idle and not len(bus.client.transport.router))


@on_loop
async def test_a_stream_that_could_not_begin_is_closed(fake_url: str) -> None:
    """As after any other error: to go on would send the request again."""
    async with serving(fake_url) as bus:
        stream = bus.client.prepare(topic="nobody").multicall({}, "count", to=object())
        with pytest.raises(msgbus.SerializationError):
            await anext(stream)
        assert [item async for item in stream] == []
        assert bus.client.transport.window.idle


@on_loop
async def test_a_remote_generator_goes_no_further_ahead_than_the_window(fake_url: str) -> None:
    """While the client takes nothing, an asynchronous generator waits, and so does a plain one."""

    class Counting(Service):
        counted = 0

        async def ahead(self, _ctxt: Any) -> AsyncIterator[int]:
            while True:
                self.counted += 1
                yield self.counted

        def plain_ahead(self, _ctxt: Any) -> Iterator[int]:
            while True:
                self.counted += 1
                yield self.counted

    service = Counting()
    async with serving(fake_url, service) as bus:
        for method in ("ahead", "plain_ahead"):
            service.counted = 0
            async with bus.client.multicall({}, method) as stream:
                assert await anext(stream) == 1
                seen = -1
                while seen != service.counted:
                    seen = service.counted
                    await asyncio.sleep(0.05)
                assert seen <= 10_000
                for number in range(2, 3000):
                    assert await anext(stream) == number
                assert service.counted > seen


@on_loop
async def test_the_deadline_of_a_whole_stream_ends_it(fake_url: str) -> None:
    """However fast its items come."""
    async with serving(fake_url) as bus:
        taken = 0
        with pytest.raises(msgbus.MessagingTimeout):  # noqa: PT012 - a block is what is tested
            async for _ in bus.client.prepare(deadline=1.0).multicall({}, "count", to=10**9):
                taken += 1
                await asyncio.sleep(0)
        assert taken > 0
        await until(lambda: "closed" in bus.service.log)


@on_loop
async def test_a_stream_says_what_it_is(fake_url: str) -> None:
    """Its repr names method and target, and its state."""
    async with serving(fake_url) as bus:
        stream = bus.client.multicall({}, "count", to=3)
        assert "not begun" in repr(stream)
        assert await anext(stream) == 0
        assert "'count'" in repr(stream)
        assert "open" in repr(stream)
        await stream.aclose()
        assert "closed" in repr(stream)
        unused = bus.client.multicall({}, "count", to=3)
        await unused.aclose()
        assert [item async for item in unused] == []
