"""msgbus.drivers.toolkit.hosted: the steps of a loop as callbacks of an event loop of asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
import uvloop

from msgbus.conformance.waiting import until as wait_until
from msgbus.drivers.toolkit.hosted import HostedLoop
from msgbus.drivers.toolkit.loop import FOREVER, LINGER
from msgbus.exceptions import CallCancelled, ConfigurationError, MessagingException, TransportUnavailable
from tests.support import EVENT_TIMEOUT, standing_clock

Main = Callable[[], Coroutine[Any, Any, None]]


def run_asyncio(main: Main) -> None:
    """Run it on asyncio's own event loop; what blocks it for long, or comes from a wrong thread, is an error."""
    asyncio.run(main(), debug=True)


def run_uvloop(main: Main) -> None:
    """Run it on uvloop's."""
    uvloop.run(main(), debug=True)


@pytest.fixture(params=[run_asyncio, run_uvloop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Runs a coroutine function on each event loop in turn."""
    found: Callable[[Main], None] = request.param
    return found


async def until(condition: Callable[[], object]) -> None:
    """Return when it is true."""
    async with asyncio.timeout(EVENT_TIMEOUT):
        while not condition():  # noqa: ASYNC110 - there is no event for all that tests wait for
            await asyncio.sleep(0.002)


def test_calls_are_run_on_the_event_loop_in_their_order(run: Callable[[Main], None]) -> None:
    """Those of the event loop's own thread and those of others, each soon, and none in the call itself."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        seen: list[Any] = []
        loop.call(seen.append, 1)
        loop.call(seen.append, 2)
        assert not seen
        await until(lambda: seen == [1, 2])
        await asyncio.to_thread(lambda: [loop.call(seen.append, threading.get_ident()) for _ in range(3)])
        await until(lambda: len(seen) == 5)
        loop.call(lambda: seen.append(threading.get_ident()))
        await until(lambda: seen[5:] == [threading.get_ident()])
        await loop.closing()
        assert not loop.call(seen.append, 7)

    run(main)


def test_what_many_tasks_send_in_one_turn_is_written_in_one_step(run: Callable[[Main], None]) -> None:
    """Tasks that all go on at once, as after one read, cause one step, which comes when all have run."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        written: list[int] = []
        waiting: list[int] = []

        def write(_over: bool) -> float:
            if waiting:
                written.append(len(waiting))
                waiting.clear()
            return FOREVER

        loop.before_sleep = write
        go = asyncio.Event()

        async def send(n: int) -> None:
            await go.wait()
            if n % 2:
                assert loop.will_step()
                waiting.append(n)
            else:
                loop.call(waiting.append, n)

        tasks = [asyncio.create_task(send(n)) for n in range(100)]
        await asyncio.sleep(0)
        loop.call(go.set)  # As a step does that has read 100 answers.
        await asyncio.gather(*tasks)
        await until(lambda: sum(written) == 100)
        assert written == [100]
        await loop.closing()

    run(main)


def test_what_is_sent_within_a_step_is_written_by_it() -> None:
    """A driver that writes what has gathered at the end of a step needs no further step for it."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        steps: list[int] = []

        def before_sleep(_over: bool) -> float:
            steps.append(loop.batch)
            return FOREVER

        loop.before_sleep = before_sleep
        answers: list[bool] = []
        loop.call(lambda: answers.append(loop.will_step()))
        await until(lambda: answers)
        for _ in range(5):
            await asyncio.sleep(0)
        assert answers == [True]
        assert len(steps) <= 2  # The first one is that of the start.
        await loop.closing()

    run_asyncio(main)


def test_descriptors_are_read(run: Callable[[Main], None]) -> None:
    """As often as there is something; and no more after `unwatch`."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        near, far = socket.socketpair()
        near.setblocking(False)
        seen: list[bytes] = []
        loop.call(loop.watch, near.fileno(), lambda: seen.append(near.recv(1)))
        far.send(b"ab")
        await until(lambda: seen == [b"a", b"b"])
        loop.call(loop.unwatch, near.fileno())
        await until(lambda: not loop._calls)
        far.send(b"c")
        await asyncio.sleep(0.01)
        assert seen == [b"a", b"b"]
        await loop.closing()
        near.close()
        far.close()

    run(main)


def test_what_has_come_is_read_before_what_is_due_is_checked(run: Callable[[Main], None]) -> None:
    """After the event loop was busy for long: else a check for heartbeats would find silence where there was none."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        near, far = socket.socketpair()
        near.setblocking(False)
        seen: list[str] = []

        def read() -> None:
            near.recv(100)
            seen.append("read")

        loop.call(loop.watch, near.fileno(), read)
        await until(lambda: near.fileno() in loop._poller.functions)  # type: ignore[union-attr]
        loop.call_later(0.01, seen.append, "due")
        far.send(b"x")
        time.sleep(0.1)  # noqa: ASYNC251 - the event loop is to be busy
        loop.call(int)  # So the next step comes before the event loop looks at descriptors.
        await until(lambda: len(seen) == 2)
        assert seen == ["read", "due"]
        await loop.closing()
        near.close()
        far.close()

    asyncio.run(main()) if run is run_asyncio else uvloop.run(main())


def test_timers_come_in_their_order_and_use_one_timer_of_the_event_loop() -> None:
    """However many there are: thousands of deadlines are one timer for the event loop."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        seen: list[int] = []
        for n in range(2000):
            loop.call_later(60.0 + n, seen.append, n)
        await asyncio.sleep(0.01)
        for n in range(2000):
            loop.call_later(30.0 - n / 1000, seen.append, n)
            if n % 100 == 0:
                await asyncio.sleep(0)
        pending = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        assert len(pending) == 1
        with standing_clock(loop):
            for n in range(5):
                loop.call_later(0.01 * (5 - n), seen.append, n)
        await until(lambda: len(seen) == 5)
        assert seen == [4, 3, 2, 1, 0]
        await loop.closing()
        assert not [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]

    asyncio.run(main())


def test_a_loop_that_lingers_comes_back(run: Callable[[Main], None]) -> None:
    """What may wait for a millisecond is asked for again after it, with word that it has waited."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        asked: list[bool] = []

        def before_sleep(over: bool) -> float:
            asked.append(over)
            return FOREVER if over else LINGER

        loop.before_sleep = before_sleep
        loop.call_later(60.0, int)
        await until(lambda: True in asked)
        lazy: list[int] = []
        loop.call_lazily(lazy.append, 1)
        await until(lambda: lazy)
        await loop.closing()

    run(main)


def test_last_calls_are_run_without_a_step_that_would_come_anyway(run: Callable[[Main], None]) -> None:
    """A coroutine of a driver, which is no part of a step, may make them too."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        loop.call_later(60.0, int)
        await asyncio.sleep(0.01)
        seen: list[int] = []
        loop.call_last(seen.append, 1)
        await until(lambda: seen)
        await loop.closing()

    run(main)


def test_an_error_of_a_function_is_logged_and_the_loop_goes_on(
    run: Callable[[Main], None], caplog: pytest.LogCaptureFixture
) -> None:
    """As on every loop."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        seen: list[int] = []
        loop.call(lambda: 1 // 0)
        loop.call_later(0.001, lambda: 1 // 0)
        loop.call_later(0.01, seen.append, 1)
        await until(lambda: seen)
        await loop.closing()

    run(main)
    assert caplog.text.count("ZeroDivisionError") == 2


def test_a_signals_handler_that_raises_ends_the_program_and_no_step() -> None:
    """As Ctrl-C does without `asyncio.run`: the step is finished first, and the exception is not only logged."""

    async def main(seen: list[str]) -> None:
        loop = HostedLoop("test-hosted")

        def step() -> None:
            signal.raise_signal(signal.SIGUSR1)
            seen.append("done")

        loop.call(step)
        try:
            await asyncio.sleep(EVENT_TIMEOUT)
        finally:
            await loop.closing()

    seen: list[str] = []
    host = asyncio.new_event_loop()
    task = host.create_task(main(seen))
    host.call_later(EVENT_TIMEOUT / 2, host.stop)
    former = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            host.run_forever()
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert seen == ["done"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        host.run_until_complete(task)
    host.close()


def test_other_threads_may_wait_and_that_of_the_event_loop_may_not(run: Callable[[Main], None]) -> None:
    """There it would never end, so it is an error."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        future: Future[int] = Future()
        waiting = asyncio.create_task(asyncio.to_thread(loop.wait_for, future, loop.now() + EVENT_TIMEOUT))
        await asyncio.sleep(0.01)
        loop.call(future.set_result, 1)
        assert await waiting
        with pytest.raises(MessagingException, match="await it"):
            loop.wait_for(Future(), loop.now() + 1)
        assert loop.is_here
        assert not await asyncio.to_thread(lambda: loop.is_here)
        await loop.closing()

    run(main)


def test_it_has_no_thread_that_could_be_kept() -> None:
    """An event loop of a driver's own does not run on it, and the error says what a driver uses instead."""

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="event_loop_of"):
            HostedLoop("test-hosted").keep_thread()

    run_asyncio(main)


def test_closing_runs_the_calls_that_were_made_and_leaves_nothing(run: Callable[[Main], None]) -> None:
    """No descriptor, no timer, no reader; also if nothing was ever called."""

    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        unused = HostedLoop("test-hosted")
        await unused.closing()
        assert unused.closed
        loop = HostedLoop("test-hosted")
        loop.call_later(60.0, int)
        seen: list[int] = []
        loop.call(seen.append, 1)
        await loop.closing()
        assert seen == [1]
        assert loop.closed
        assert len(os.listdir("/proc/self/fd")) == before
        future: Future[None] = Future()
        loop.call_for(future, int)
        assert isinstance(future.exception(0), CallCancelled)

    run(main)


def close_early(run_it: Callable[[Coroutine[Any, Any, HostedLoop]], HostedLoop]) -> HostedLoop:
    """A loop whose event loop was closed while it was in use."""

    async def main() -> HostedLoop:
        loop = HostedLoop("test-hosted")
        loop.call_later(60.0, int)
        await asyncio.sleep(0.01)
        return loop

    return run_it(main())


def test_a_thread_that_has_taken_over_may_not_be_woken(caplog: pytest.LogCaptureFixture) -> None:
    """Other code has closed the loop's descriptors as well: whoever calls is told so, and closing does not wait."""
    loop = close_early(asyncio.run)
    reading, writing = os.pipe()
    watched = threading.Event()
    loop.call(loop.watch, reading, lambda: loop.unwatch(reading))
    loop.call(watched.set)
    assert watched.wait(EVENT_TIMEOUT)
    poller, successor = loop._poller, loop._successor
    assert poller is not None
    assert successor is not None
    wait_until(lambda: poller.polls and not loop.awake, "the thread sleeps", EVENT_TIMEOUT)
    os.close(poller._wake)
    for _ in range(2):
        with pytest.raises(TransportUnavailable, match="make the transport after that"):
            loop.call(watched.clear)
    loop.close()
    assert "make the transport after that" in caplog.text
    os.write(writing, b"x")
    successor.join(EVENT_TIMEOUT)
    assert not successor.is_alive()
    assert loop.closed
    assert watched.is_set()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("run_it", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_thread_takes_over_when_the_event_loop_was_closed_first(
    run_it: Callable[[Coroutine[Any, Any, HostedLoop]], HostedLoop], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver can still be closed in order, with all that it says to its peers; the log says what to do better."""
    uvloop.new_event_loop().close()  # The first one of a process opens two descriptors, which libuv keeps.
    before = len(os.listdir("/proc/self/fd"))
    loop = close_early(run_it)
    near, far = socket.socketpair()
    seen: list[bytes] = []

    def close() -> None:
        done: Future[bool] = Future()
        loop.call_for(done, loop.watch, near.fileno(), lambda: seen.append(near.recv(1)))
        loop.call_for(done, far.send, b"x")
        loop.call_later(0.01, lambda: done.set_result(loop.is_here))
        assert done.result(EVENT_TIMEOUT)
        assert not loop.is_here
        loop.call(loop.unwatch, near.fileno())
        loop.close()

    if where == "here":
        close()
    else:
        thread = threading.Thread(target=close)
        thread.start()
        thread.join(EVENT_TIMEOUT)
    assert seen == [b"x"]
    assert loop.closed
    assert caplog.text.count("async with") == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "test-hosted"]
    near.close()
    far.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_call_that_the_event_loop_could_not_run_any_more_is_run_by_the_thread() -> None:
    """Though the event loop took it before it was closed."""

    async def main() -> HostedLoop:
        return HostedLoop("test-hosted")

    host = asyncio.new_event_loop()
    loop = host.run_until_complete(main())
    seen: list[int] = []
    loop.call(seen.append, 1)
    host.close()
    done: Future[None] = Future()
    loop.call_for(done, partial(done.set_result, None))
    done.result(EVENT_TIMEOUT)
    assert seen == [1]
    loop.close()
    assert loop.closed


def test_one_that_was_never_used_is_closed_with_its_event_loop() -> None:
    """It needs no thread to say that nothing can be called."""

    async def main() -> HostedLoop:
        return HostedLoop("test-hosted")

    loop = asyncio.run(main())
    assert not loop.call(int)
    assert loop.closed


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_forked_child_it_is_the_parents() -> None:
    """The child's calls fail, and the parent's go on."""

    async def main() -> None:
        loop = HostedLoop("test-hosted")
        loop.call_later(60.0, int)
        await asyncio.sleep(0.01)
        child = os.fork()
        if child == 0:
            try:
                assert not loop.call(int)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222 - it is short
        seen: list[int] = []
        loop.call(seen.append, 1)
        await until(lambda: seen)
        await loop.closing()

    asyncio.run(main())
