"""msgbus.drivers.toolkit.futures.LightFuture: it can be used like any other future."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ALL_COMPLETED, Future, InvalidStateError, as_completed, wait
from types import SimpleNamespace

import pytest

from msgbus.drivers.toolkit.futures import LightFuture, fail, fail_inherited, finish
from msgbus.exceptions import CallCancelled
from tests.support import EVENT_TIMEOUT


class Trouble(Exception):
    """An error that a future fails with."""


def later(func: object, *args: object) -> threading.Thread:
    """Call a function on another thread."""
    thread = threading.Thread(target=func, args=args)  # type: ignore[arg-type]
    thread.start()
    return thread


def test_a_result() -> None:
    """It is there once it was set, and a second one is refused."""
    future = LightFuture[int]()
    assert not future.done()
    assert not future.running()
    with pytest.raises(TimeoutError):
        future.result(0)
    future.set_result(1)
    assert future.done()
    assert (future.result(), future.result(0), future.exception()) == (1, 1, None)
    with pytest.raises(InvalidStateError):
        future.set_result(2)
    with pytest.raises(InvalidStateError):
        future.set_exception(Trouble())
    assert future.result() == 1
    assert "returned int" in repr(future)


def test_an_exception() -> None:
    """It is raised, and can be had."""
    future = LightFuture[int]()
    error = Trouble("it")
    future.set_exception(error)
    assert future.exception() is error
    with pytest.raises(Trouble, match="it"):
        future.result()
    finish(future, 1)
    fail(future, Trouble("another"))
    assert future.exception(0) is error


def test_callbacks() -> None:
    """Each is called once, with the future, in the order in which they were added, whenever that was."""
    future = LightFuture[int]()
    calls: list[tuple[str, int]] = []
    future.add_done_callback(lambda done: calls.append(("first", done.result())))
    future.add_done_callback(lambda done: calls.append(("second", done.result())))
    future.set_result(1)
    future.add_done_callback(lambda done: calls.append(("third", done.result())))
    assert calls == [("first", 1), ("second", 1), ("third", 1)]


def test_a_callback_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the others are called."""
    future = LightFuture[int]()
    calls: list[int] = []

    def raises(_future: Future[int]) -> None:
        raise Trouble("in a callback")

    future.add_done_callback(raises)
    future.add_done_callback(lambda done: calls.append(done.result()))
    future.set_result(1)
    assert calls == [1]
    assert "in a callback" in caplog.text


@pytest.mark.parametrize("round_", range(50))
def test_threads_wait(round_: int) -> None:
    """Whoever waits when it is finished, or just before, or just after, hears of it."""
    future = LightFuture[int]()
    found: list[int] = []
    threads = [later(lambda: found.append(future.result(EVENT_TIMEOUT))) for _ in range(4)]
    if round_ % 2:
        while not future._made:
            pass
    future.set_result(round_)
    for thread in threads:
        thread.join(EVENT_TIMEOUT)
    assert found == [round_] * 4


def test_one_of_many_finishes_it() -> None:
    """Of many threads that finish it at once one does, and callbacks that are added meanwhile are called once."""
    for _ in range(300):
        future = LightFuture[int]()
        done: list[int] = []
        calls: list[int] = []
        gate = threading.Barrier(4)

        def set_it(number: int, future: LightFuture[int] = future, gate: threading.Barrier = gate) -> None:
            gate.wait(EVENT_TIMEOUT)
            try:
                future.set_result(number)
            except InvalidStateError:
                return
            done.append(number)  # noqa: B023  # it ends within the round

        def add(future: LightFuture[int] = future, gate: threading.Barrier = gate) -> None:
            gate.wait(EVENT_TIMEOUT)
            for _ in range(10):
                future.add_done_callback(lambda _done: calls.append(1))  # noqa: B023

        threads = [later(set_it, n) for n in range(2)] + [later(add) for _ in range(2)]
        for thread in threads:
            thread.join(EVENT_TIMEOUT)
        assert len(done) == 1
        assert future.result() == done[0]
        assert len(calls) == 20


def test_cancel() -> None:
    """One that is not done can be cancelled; what comes after that is refused."""
    future = LightFuture[int]()
    calls: list[bool] = []
    future.add_done_callback(lambda done: calls.append(done.cancelled()))
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    assert calls == [True]
    finish(future, 1)
    assert future.cancelled()
    done = LightFuture[int]()
    done.set_result(1)
    assert not done.cancel()


def test_waiting_for_several() -> None:
    """`concurrent.futures.wait` and `as_completed` know it, done or not, together with others."""
    first, second, plain = LightFuture[int](), LightFuture[int](), Future[int]()
    first.set_result(1)
    thread = later(lambda: (second.set_exception(Trouble()), plain.set_result(3)))  # type: ignore[func-returns-value]
    done, open_ = wait([first, second, plain], EVENT_TIMEOUT, ALL_COMPLETED)
    thread.join()
    assert (done, open_) == ({first, second, plain}, set())
    assert set(as_completed([first, second, plain], EVENT_TIMEOUT)) == {first, second, plain}


def test_one_that_is_running_is_not_done() -> None:
    """What finishes it may mark it so, as an executor does: then it cannot be cancelled any more."""
    future = LightFuture[int]()
    done: list[int] = []
    assert future.set_running_or_notify_cancel()
    assert future.running()
    assert not future.done()
    assert not future.cancel()
    future.add_done_callback(lambda each: done.append(each.result()))
    assert done == []
    future.set_result(1)
    assert (done, future.done()) == ([1], True)


def test_asyncio_can_wait_for_it() -> None:
    """`asyncio.wrap_future` knows it; a cancelled task cancels it."""

    async def run() -> int:
        future = LightFuture[int]()
        thread = later(future.set_result, 5)
        found = await asyncio.wait_for(asyncio.wrap_future(future), EVENT_TIMEOUT)
        thread.join()
        dropped = LightFuture[int]()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(dropped), 0.01)
        assert dropped.cancelled()
        return found

    assert asyncio.run(run()) == 5


def test_one_that_a_child_inherited() -> None:
    """Its condition may be held by a thread of the parent's that is not there."""
    future = LightFuture[int]()
    future._condition.acquire()
    held = later(fail_inherited, future)
    held.join(EVENT_TIMEOUT)
    assert isinstance(future.exception(0), CallCancelled)


def test_one_that_was_about_to_be_finished_at_the_fork() -> None:
    """The parent's thread had decided to finish it, and is not there to do so: the child's copy fails."""
    future = LightFuture[int]()
    future._unfinished.pop()  # as that thread has done
    fail_inherited(future)
    assert isinstance(future.exception(0), CallCancelled)


def test_a_fork_while_another_thread_begins_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child can wait for futures: no lock is held while the condition is made."""
    begun, goes_on = threading.Event(), threading.Event()

    def slow() -> threading.Condition:
        if not begun.is_set():
            begun.set()
            goes_on.wait(EVENT_TIMEOUT)
        return threading.Condition()

    monkeypatch.setattr("msgbus.drivers.toolkit.futures.threading", SimpleNamespace(Condition=slow))
    future = LightFuture[int]()
    waits = later(future.exception, EVENT_TIMEOUT)
    assert begun.wait(EVENT_TIMEOUT)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(EVENT_TIMEOUT))
        try:
            LightFuture[int]().exception(0)
        except TimeoutError:
            os._exit(0)
        os._exit(1)
    goes_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    future.set_result(1)
    waits.join(EVENT_TIMEOUT)
