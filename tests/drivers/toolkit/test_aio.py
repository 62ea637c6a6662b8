"""msgbus.drivers.toolkit.aio: asyncio on the thread of a transport's loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from msgbus.conformance.waiting import until
from msgbus.drivers.toolkit.aio import AsyncioLoop, DriverEventLoop, event_loop_of
from msgbus.drivers.toolkit.hosted import HostedLoop
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import CallCancelled
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


def test_an_error_in_a_task_of_the_library_is_not_the_drivers(
    loop: Loop, aio: AsyncioLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a task may end with the connection, and nobody awaits it. What a callback raises is logged."""

    async def fail() -> None:
        raise ConnectionError("the connection broke")

    async def work() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait({task})
        del task
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(0.01)

    run(loop, aio, work())
    gc.collect()
    assert "the connection broke" not in caplog.text
    assert "ZeroDivisionError" in caplog.text


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


# On the program's own event loop


async def dial(aio: DriverEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine as `BrokerDriver.dial` does, on a thread of its own."""
    return await asyncio.to_thread(aio.run, work)


def test_each_kind_of_transport_has_its_event_loop(loop: Loop) -> None:
    """One that the transport's loop runs; or, with msgbus.aio, that of the program."""
    own = event_loop_of(loop)
    assert isinstance(own, AsyncioLoop)
    own.close()

    async def main() -> None:
        hosted = HostedLoop("test-hosted")
        aio = event_loop_of(hosted)

        async def work() -> Any:
            return asyncio.get_running_loop(), threading.get_ident(), hosted.is_here

        assert await dial(aio, work()) == (asyncio.get_running_loop(), threading.get_ident(), True)
        assert aio.create_future().get_loop() is asyncio.get_running_loop()
        await hosted.closing()

    asyncio.run(main())


def test_an_error_while_connecting_is_raised_where_it_is_waited_for() -> None:
    """Its driver explains it, as any other."""

    async def fail() -> None:
        raise ConnectionRefusedError("nobody is there")

    async def main() -> None:
        hosted = HostedLoop("test-hosted")
        with pytest.raises(ConnectionRefusedError, match="nobody"):
            await dial(event_loop_of(hosted), fail())
        await hosted.closing()

    asyncio.run(main())


def test_closing_waits_for_what_a_driver_still_closes_and_cancels_the_rest() -> None:
    """`end` returns at once there; the transport is closed when the last coroutine has ended, and its tasks too."""
    seen: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    async def last() -> None:
        await asyncio.sleep(0.05)
        seen.append("last")

    async def main() -> None:
        hosted = HostedLoop("test-hosted")
        aio = event_loop_of(hosted)
        hosted.call(aio.attach)
        hosted.call(aio.spawn, forever())
        await asyncio.sleep(0.01)
        hosted.call(aio.end, last(), EVENT_TIMEOUT)
        hosted.call(lambda: seen.append("goes on"))
        await hosted.closing()
        assert seen == ["goes on", "last", "cancelled"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_closing_ends_what_is_still_connecting() -> None:
    """Its thread learns of that, and what it closes then is waited for: nothing is left on the program's event loop."""
    seen: list[str] = []

    def connect(aio: DriverEventLoop) -> None:
        async def last() -> None:
            await asyncio.sleep(0.05)
            seen.append("closed")

        try:
            aio.run(asyncio.sleep(EVENT_TIMEOUT))
        except CancelledError:
            aio.end(last(), EVENT_TIMEOUT)

    async def main() -> None:
        hosted = HostedLoop("test-hosted")
        hosted.call_later(60.0, int)
        connecting = asyncio.create_task(asyncio.to_thread(connect, event_loop_of(hosted)))
        await asyncio.sleep(0.05)
        await hosted.closing()
        assert seen == ["closed"]
        await connecting
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_begins_to_connect_at_the_end_does_not(moment: str) -> None:
    """Its thread may be late: it learns that the transport is being closed, before or after it was told to begin."""
    hosts: list[HostedLoop] = []
    ends: list[str] = []

    async def open_it() -> None:
        ends.append("begun")
        await asyncio.sleep(EVENT_TIMEOUT)

    def connect() -> None:
        aio = event_loop_of(hosts[0])
        with pytest.raises(CancelledError):
            aio.run(open_it())
        aio.end(asyncio.sleep(0), EVENT_TIMEOUT)
        ends.append("cancelled")

    async def main() -> None:
        hosts.append(HostedLoop("test-hosted"))
        hosts[0].call_later(60.0, int)
        connecting = threading.Thread(target=connect)
        if moment == "before":
            connecting.start()
            until(lambda: hosts[0]._guests, "it is about to begin, and the event loop is busy", EVENT_TIMEOUT)
            await hosts[0].closing()
        else:
            await hosts[0].closing()
            connecting.start()
        await asyncio.to_thread(connecting.join, EVENT_TIMEOUT)
        assert ends[-1:] == ["cancelled"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_last_coroutine_that_does_not_end_is_cancelled() -> None:
    """After its time, wherever it was begun: by a thread that gives up connecting, or on the event loop."""

    async def main() -> None:
        hosted = HostedLoop("test-hosted")
        hosted.call_later(60.0, int)
        aio = event_loop_of(hosted)
        await asyncio.to_thread(aio.end, asyncio.Event().wait(), 0.01)
        hosted.call(aio.end, asyncio.Event().wait(), 0.01)
        await hosted.closing()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_an_error_of_a_drivers_coroutine_is_logged_there_too(caplog: pytest.LogCaptureFixture) -> None:
    """Once; the program's event loop learns nothing of it."""

    async def fail() -> None:
        raise ValueError("a fault of the driver")

    async def main() -> None:
        hosted = HostedLoop("test-hosted")
        hosted.call(event_loop_of(hosted).spawn, fail())
        await asyncio.sleep(0.05)
        await hosted.closing()

    asyncio.run(main())
    assert caplog.text.count("ValueError: a fault of the driver") == 1


def test_a_program_that_ends_its_event_loop_ends_the_wait_of_the_thread_that_connects() -> None:
    """Whether the event loop was closed before, or is meanwhile."""
    made: list[DriverEventLoop] = []
    errors: list[BaseException] = []

    def connect() -> None:
        try:
            made[0].run(asyncio.sleep(EVENT_TIMEOUT))
        except BaseException as exc:
            errors.append(exc)

    async def main() -> None:
        made.append(event_loop_of(HostedLoop("test-hosted")))
        await asyncio.sleep(0)

    host = asyncio.new_event_loop()
    host.run_until_complete(main())
    meanwhile = threading.Thread(target=connect)
    meanwhile.start()
    host.run_until_complete(asyncio.sleep(0.05))
    for task in asyncio.all_tasks(host):
        task.cancel()
    host.run_until_complete(asyncio.sleep(0))
    meanwhile.join(EVENT_TIMEOUT)
    host.close()
    connect()
    made[0].end(nothing(), EVENT_TIMEOUT)
    assert len(errors) == 2
    assert isinstance(errors[1], CallCancelled)
