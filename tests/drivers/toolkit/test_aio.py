"""msgbus.drivers.toolkit.aio: asyncio on the thread of a transport's loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus.drivers.toolkit.aio import AsyncioLoop
from msgbus.drivers.toolkit.loop import Loop
from tests.support import EVENT_TIMEOUT


@pytest.fixture
def loop() -> Iterator[Loop]:
    """One that ends with the test."""
    made = Loop("test-loop")
    yield made
    made.close()
    assert made.closed


@pytest.fixture
def aio(loop: Loop) -> Iterator[AsyncioLoop]:
    """One that the loop runs, and that is closed cleanly at the end."""
    made = AsyncioLoop(loop)
    loop.call(made.attach)
    yield made
    loop.call(made.end, nothing(), EVENT_TIMEOUT)
    loop.close()
    assert made.is_closed()


async def nothing() -> None:
    """A last coroutine that does nothing."""


def run(loop: Loop, aio: AsyncioLoop, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that the loop's thread runs."""
    done: Future[Any] = Future()

    async def working() -> None:
        try:
            done.set_result(await work)
        except BaseException as exc:
            done.set_exception(exc)

    loop.call(aio.spawn, working())
    return done.result(EVENT_TIMEOUT)


async def echo(port: int, count: int) -> None:
    """Send lines, each after the answer to the one before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for n in range(count):
        writer.write(b"%d\n" % n)
        assert await reader.readline() == b"%d\n" % n
    writer.close()
    await writer.wait_closed()


async def serve() -> asyncio.Server:
    """An echo server."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


def test_coroutines_run_on_the_loops_thread_between_its_calls(loop: Loop, aio: AsyncioLoop) -> None:
    """Waiting in one of them, for whatever it is, does not hold up what the loop is handed meanwhile."""
    seen = []

    async def work() -> None:
        done = asyncio.Event()
        seen.append(loop.is_here)
        loop.call(seen.append, "called meanwhile")
        loop.call(done.set)
        await done.wait()
        await asyncio.sleep(0.01)
        assert await asyncio.to_thread(lambda: loop.is_here) is False
        seen.append(loop.is_here)

    run(loop, aio, work())
    assert seen == [True, "called meanwhile", True]


def test_sockets_are_read_and_written(loop: Loop, aio: AsyncioLoop) -> None:
    """By streams of asyncio, on both sides, many times."""

    async def work() -> None:
        server = await serve()
        await asyncio.gather(*(echo(server.sockets[0].getsockname()[1], 50) for _ in range(5)))
        server.close()
        await server.wait_closed()

    run(loop, aio, work())


def test_what_is_due_is_run_and_what_was_cancelled_is_not(loop: Loop, aio: AsyncioLoop) -> None:
    """A timeout ends a wait; a timer that was cancelled does nothing."""
    ran: list[str] = []

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.01, ran.append, "due")
        asyncio.get_running_loop().call_later(0.01, ran.append, "cancelled").cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asyncio.Event().wait()

    run(loop, aio, work())
    assert ran == ["due"]


def test_other_threads_wake_it(loop: Loop, aio: AsyncioLoop) -> None:
    """By asyncio's own `call_soon_threadsafe`, which libraries use."""
    done = threading.Event()
    run(loop, aio, nothing())
    aio.call_soon_threadsafe(done.set)
    assert done.wait(EVENT_TIMEOUT)


def test_it_runs_by_itself_until_it_is_attached(loop: Loop) -> None:
    """A task that was begun before goes on afterwards."""
    aio = AsyncioLoop(loop)
    go, done = asyncio.Event(), threading.Event()

    async def later() -> None:
        await go.wait()
        assert loop.is_here
        done.set()

    async def begin() -> asyncio.Server:
        aio.spawn(later())
        return await serve()

    server = aio.run_until_complete(begin())
    assert not done.is_set()
    loop.call(aio.attach)
    loop.call(go.set)
    assert done.wait(EVENT_TIMEOUT)

    async def end() -> None:
        server.close()

    loop.call(aio.end, end(), EVENT_TIMEOUT)
    loop.close()
    assert aio.is_closed()


def test_its_end_closes_it_before_it_was_attached(loop: Loop) -> None:
    """Also where the last coroutine fails, or does not end, and a task does not want to."""

    async def stubborn() -> None:
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    aio = AsyncioLoop(loop)

    async def begin() -> None:
        aio.spawn(stubborn())
        await asyncio.sleep(0)

    aio.run_until_complete(begin())
    aio.end(asyncio.Event().wait(), 0.01)
    assert aio.is_closed()


def test_an_error_of_a_coroutine_is_logged(loop: Loop, aio: AsyncioLoop, caplog: pytest.LogCaptureFixture) -> None:
    """Once, with its traceback; the loop goes on."""

    async def fail() -> None:
        raise ValueError("a fault of the driver")

    loop.call(aio.spawn, fail())
    run(loop, aio, asyncio.sleep(0.01))
    assert caplog.text.count("ValueError: a fault of the driver") == 1


def test_it_leaves_no_descriptor(loop: Loop) -> None:
    """Once it is closed, all it has opened is closed."""
    loop.call_later(0, int)  # The loop opens its own.
    before = len(os.listdir("/proc/self/fd"))
    aio = AsyncioLoop(loop)
    aio.run_until_complete(nothing())
    aio.end(nothing(), EVENT_TIMEOUT)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_forked_child_it_is_the_parents(loop: Loop, aio: AsyncioLoop) -> None:
    """The child neither runs nor closes it, and the parent's goes on as before."""
    run(loop, aio, nothing())
    child = os.fork()
    if child == 0:
        try:
            assert not aio.is_closed()
            assert AsyncioLoop(loop).run_until_complete(asyncio.sleep(0, 7)) == 7
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert run(loop, aio, asyncio.sleep(0.01, 7)) == 7
