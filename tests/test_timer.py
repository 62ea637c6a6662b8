from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from msgbus.timer import Timer
from tests.support import PATIENCE


@pytest.fixture
def timer() -> Iterator[Timer]:
    """A timer, closed in the end."""
    timer = Timer("timer-of-the-test")
    yield timer
    timer.close()


def running() -> int:
    """How many threads the tests' timers have."""
    return sum(thread.name == "timer-of-the-test" for thread in threading.enumerate())


def test_has_no_thread_before_it_is_asked_for_something(timer: Timer) -> None:
    """A timer that nothing is asked of costs no thread; however much is asked of it, it has one."""
    assert running() == 0
    for _ in range(5):
        timer.call_later(3600, lambda: None)
    assert running() == 1


def test_runs_in_the_order_of_their_times(timer: Timer) -> None:
    """What is due first runs first, whatever was asked for first; of equal times, what was asked for first."""
    ran: list[str] = []
    done, all_there = threading.Event(), threading.Event()
    timer.call_later(0, lambda: all_there.wait(PATIENCE))  # so that all of them are due when the first one runs
    timer.call_later(0.003, done.set)
    timer.call_later(0.002, lambda: ran.append("last"))
    timer.call_later(0.001, lambda: ran.append("second"))
    for name in "abc":
        timer.call_later(-1, lambda name=name: ran.append(name))  # type: ignore[misc]  # mypy cannot type the default
    all_there.set()
    assert done.wait(PATIENCE)
    assert ran == ["a", "b", "c", "second", "last"]


def test_an_earlier_one_overtakes(timer: Timer) -> None:
    """A thread that waits for something far away is woken for what is due before."""
    done = threading.Event()
    timer.call_later(3600, lambda: None)
    timer.call_later(0, done.set)
    assert done.wait(PATIENCE)


def test_a_function_that_fails_does_not_stop_it(timer: Timer, caplog: pytest.LogCaptureFixture) -> None:
    """An exception of one function is logged, and the next one runs."""
    done = threading.Event()
    timer.call_later(0, lambda: 1 / 0)
    timer.call_later(0, done.set)
    assert done.wait(PATIENCE)
    assert "a timer's function failed" in caplog.text


def test_a_function_may_ask_for_the_next_one(timer: Timer) -> None:
    """A function that the timer runs may have another one run later."""
    done = threading.Event()
    timer.call_later(0, lambda: timer.call_later(0, done.set))
    assert done.wait(PATIENCE)


def test_lets_go_of_what_it_has_run(timer: Timer) -> None:
    """What a function refers to does not live on until the next one is due."""

    class Thing:
        def method(self) -> None:
            pass

    gone = threading.Event()
    thing = Thing()
    weakref.finalize(thing, gone.set)
    timer.call_later(0, thing.method)
    del thing
    gc.collect()
    assert gone.wait(PATIENCE)


def test_close_forgets_what_is_due_and_ends_the_thread() -> None:
    """After `close` nothing runs any more, the thread is gone, and what is asked for is forgotten."""
    timer = Timer("timer-of-the-test")
    ran: list[int] = []
    timer.call_later(3600, lambda: ran.append(1))
    timer.close()
    assert running() == 0
    timer.call_later(0, lambda: ran.append(2))
    assert running() == 0
    timer.close()
    assert not ran


def test_close_without_a_thread() -> None:
    """A timer that was never used can be closed."""
    Timer("timer-of-the-test").close()


def test_close_from_its_own_thread() -> None:
    """One of its functions may close a timer."""
    timer = Timer("timer-of-the-test")
    closed = threading.Event()

    def close() -> None:
        timer.close()
        closed.set()

    timer.call_later(0, close)
    assert closed.wait(PATIENCE)
    timer.close()
    assert running() == 0
