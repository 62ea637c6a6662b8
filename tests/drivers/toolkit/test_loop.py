"""msgbus.drivers.toolkit.loop: one thread that does what others hand it."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus.drivers.toolkit.loop import FOREVER, LINGER, Loop
from tests.support import EVENT_TIMEOUT, standing_clock


@pytest.fixture
def loop() -> Iterator[Loop]:
    """One that ends with the test."""
    made = Loop("test-loop")
    yield made
    made.close()
    assert made.closed


def test_it_runs_calls_in_order(loop: Loop) -> None:
    """From any thread, on its own, which starts with the first."""
    ran: list[Any] = []
    done = threading.Event()
    assert not loop.started
    for n in range(1000):
        (loop.call_lazily if n % 3 else loop.call)(ran.append, n)
    loop.call(lambda: ran.append(loop.is_here))
    loop.call(done.set)
    assert done.wait(EVENT_TIMEOUT)
    assert ran == [*range(1000), True]
    assert not loop.is_here


def test_it_goes_on_after_an_error(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """One function that fails does not take the others with it, and is logged."""
    done = threading.Event()
    loop.call(lambda: 1 // 0)
    loop.call(done.set)
    assert done.wait(EVENT_TIMEOUT)
    assert "ZeroDivisionError" in caplog.text


def test_what_is_last_comes_after_all_else(loop: Loop) -> None:
    """After all calls, and after gathered data was sent."""
    order: list[str] = []
    done = threading.Event()

    def before_sleep(_over: bool) -> float:
        if order and order[-1] != "last":
            order.append("sent")
        return FOREVER

    def both() -> None:
        loop.before_sleep = before_sleep
        loop.call_last(order.append, "last")
        loop.call_last(done.set)
        loop.call(order.append, "second")
        order.append("first")

    loop.call(both)
    assert done.wait(EVENT_TIMEOUT)
    assert order == ["first", "second", "sent", "last"]


def test_what_is_due_later_comes_in_its_turn(loop: Loop) -> None:
    """Earlier ones first, whatever the order in which they were asked for."""
    order: list[int] = []
    done = threading.Event()

    def ask() -> None:
        with standing_clock(loop):
            loop.call_later(0.03, done.set)
            loop.call_later(0.02, lambda: order.append(2))
            loop.call_later(0.01, lambda: order.append(1))
            loop.call_later(0.0, lambda: order.append(0))

    loop.call(ask)
    assert done.wait(EVENT_TIMEOUT)
    assert order == [0, 1, 2]


def test_it_watches_descriptors(loop: Loop) -> None:
    """As long as it is asked to."""
    read, write = os.pipe()
    got: list[bytes] = []
    seen = threading.Event()

    def on_read() -> None:
        got.append(os.read(read, 1))
        seen.set()

    loop.call(loop.watch, read, on_read)
    os.write(write, b"a")
    assert seen.wait(EVENT_TIMEOUT)
    stopped = threading.Event()
    loop.call(loop.unwatch, read)
    loop.call(stopped.set)
    assert stopped.wait(EVENT_TIMEOUT)
    os.write(write, b"b")
    os.close(write)
    assert got == [b"a"]
    assert os.read(read, 1) == b"b"
    os.close(read)


def test_lingering_ends_with_sending_what_was_held_back(loop: Loop) -> None:
    """Where something waits for more to travel with, the thread looks again a moment later by itself."""
    over = threading.Event()

    def before_sleep(is_over: bool) -> float:
        if is_over:
            over.set()
        return FOREVER if over.is_set() else LINGER

    loop.before_sleep = before_sleep
    loop.call(lambda: None)
    assert over.wait(EVENT_TIMEOUT)


def test_data_left_to_the_thread_is_written_before_it_waits(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """Other threads write themselves once the loop's thread waits; what they left to it before, it writes.

    It does so without another turn, and goes on after an error.
    """
    left: list[str] = []
    found: list[tuple[str, bool, int]] = []
    turns = 0
    done = threading.Event()

    def before_sleep(_over: bool) -> float:
        nonlocal turns
        turns += 1
        if turns == 1:
            left.append("late")
        return FOREVER

    def write_rest() -> None:
        while left:
            found.append((left.pop(), loop.awake, turns))
            done.set()
            raise ValueError("a socket is broken")

    def begin() -> None:
        loop.before_sleep, loop.write_rest = before_sleep, write_rest

    loop.call(begin)
    assert done.wait(EVENT_TIMEOUT)
    assert found == [("late", False, 1)]
    again = threading.Event()
    loop.call(again.set)
    assert again.wait(EVENT_TIMEOUT)
    assert "a socket is broken" in caplog.text


def test_close_runs_the_calls_before_it() -> None:
    """Then the thread ends and gives its descriptors back; afterwards nothing is run, and nothing fails."""
    before = len(os.listdir("/proc/self/fd"))
    loop = Loop("test-loop")
    ran: list[int] = []
    for n in range(100):
        loop.call(ran.append, n)
    loop.close()
    assert ran == list(range(100))
    loop.call(ran.append, 100)
    loop.close()
    assert ran == list(range(100))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_loop_that_was_never_used_closes() -> None:
    """And gives its descriptors back."""
    before = len(os.listdir("/proc/self/fd"))
    Loop("test-loop").close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_may_hand_it_things(loop: Loop) -> None:
    """Nothing is lost, and nobody has to wait for the next one to wake it."""
    ran: list[int] = []

    def hand(thread: int) -> None:
        for n in range(500):
            loop.call(ran.append, thread * 1000 + n)
            if n % 50 == 0:
                time.sleep(0)

    threads = [threading.Thread(target=hand, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = threading.Event()
    loop.call(done.set)
    assert done.wait(EVENT_TIMEOUT)
    assert len(ran) == len(set(ran)) == 4000


def running() -> int:
    """How many threads the tests' loops have."""
    return sum(thread.name == "test-loop" for thread in threading.enumerate())


def test_it_has_no_thread_before_it_is_asked_for_something(loop: Loop) -> None:
    """A loop that nothing is asked of costs no thread; however much is asked of it, it has one."""
    assert running() == 0
    for _ in range(5):
        loop.call_later(3600, lambda: None)
    assert running() == 1


def test_what_is_due_runs_in_the_order_of_their_times(loop: Loop) -> None:
    """What is due first runs first, whatever was asked for first; of equal times, what was asked for first."""
    ran: list[str] = []
    done, all_there = threading.Event(), threading.Event()
    with standing_clock(loop):
        loop.call_later(-2, lambda: all_there.wait(EVENT_TIMEOUT))  # so that all of them are there when the first runs
        loop.call_later(0.003, done.set)
        loop.call_later(0.002, lambda: ran.append("last"))
        loop.call_later(0.001, lambda: ran.append("second"))
        for name in "abc":
            loop.call_later(-1, lambda name=name: ran.append(name))
    all_there.set()
    assert done.wait(EVENT_TIMEOUT)
    assert ran == ["a", "b", "c", "second", "last"]


def test_what_is_due_earlier_overtakes(loop: Loop) -> None:
    """A thread that waits for something far away is woken for what is due before."""
    done = threading.Event()
    loop.call_later(3600, lambda: None)
    loop.call_later(0, done.set)
    assert done.wait(EVENT_TIMEOUT)


def test_what_is_due_in_years_does_not_stop_it(loop: Loop) -> None:
    """The kernel refuses to wait for more than 24 days at once."""
    done: list[Future[None]] = [Future(), Future()]
    loop.call_later(1e8, done[0].set_result, None)
    loop.call_later(0.01, done[1].set_result, None)
    done[1].result(EVENT_TIMEOUT)
    assert loop.wait_for(done[1], loop.now() + 1e8)
    done.append(Future())
    loop.call_later(0.01, done[2].set_result, None)
    assert loop.wait_for(done[2], loop.now() + 1e8)
    assert not done[0].done()


def test_a_due_function_that_fails_does_not_stop_it(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """An exception of one function is logged, and the next one runs."""
    done = threading.Event()
    loop.call_later(0, lambda: 1 / 0)
    loop.call_later(0, done.set)
    assert done.wait(EVENT_TIMEOUT)
    assert "ZeroDivisionError" in caplog.text


def test_a_function_may_ask_for_the_next_one(loop: Loop) -> None:
    """A function that it runs may have another one run later."""
    done = threading.Event()
    loop.call_later(0, lambda: loop.call_later(0, done.set))
    assert done.wait(EVENT_TIMEOUT)


def test_lets_go_of_what_it_has_run(loop: Loop) -> None:
    """What a function refers to does not live on until the next one is due."""

    class Thing:
        def method(self) -> None:
            pass

    gone = threading.Event()
    thing = Thing()
    weakref.finalize(thing, gone.set)
    loop.call_later(0, thing.method)
    del thing
    gc.collect()
    assert gone.wait(EVENT_TIMEOUT)


def test_close_forgets_what_is_due_and_ends_the_thread() -> None:
    """After `close` nothing runs any more, the thread has ended, and later calls are ignored."""
    loop = Loop("test-loop")
    ran: list[int] = []
    loop.call_later(3600, lambda: ran.append(1))
    loop.close()
    assert running() == 0
    loop.call_later(0, lambda: ran.append(2))
    assert running() == 0
    loop.close()
    assert not ran


def test_close_from_its_own_thread() -> None:
    """One of its functions may close it."""
    loop = Loop("test-loop")
    closed = threading.Event()

    def close() -> None:
        loop.close()
        closed.set()

    loop.call_later(0, close)
    assert closed.wait(EVENT_TIMEOUT)
    loop.close()
    assert running() == 0


def test_close_ends_a_driver_that_does_not_finish_closing() -> None:
    """A descriptor that is still watched, and never ready, does not keep the thread and its descriptors for ever."""
    loop = Loop("test-loop")
    read, write = os.pipe()
    watched = threading.Event()
    loop.call(loop.watch, read, lambda: None)
    loop.call(watched.set)
    assert watched.wait(EVENT_TIMEOUT)
    loop.close()
    end = time.monotonic() + EVENT_TIMEOUT  # `close` itself does not wait for ever.
    while not loop.closed and time.monotonic() < end:
        time.sleep(0.01)
    assert loop.closed
    os.close(read)
    os.close(write)


def test_close_drops_what_is_due_later() -> None:
    """What a timer refers to is not kept by a loop that has ended."""

    class Thing:
        def method(self) -> None:
            """Never called."""

    loop, thing, dropped = Loop("test-loop"), Thing(), threading.Event()
    weakref.finalize(thing, dropped.set)
    loop.call_later(3600, thing.method)
    del thing
    loop.close()
    gc.collect()
    assert dropped.is_set()


def test_no_other_thread_is_taken_for_the_one_that_has_ended() -> None:
    """The operating system gives the number of an ended thread to a new one: that one does not drive the loop."""
    loop = Loop("test-loop")
    numbers: list[int] = []
    loop.call(lambda: numbers.append(threading.get_ident()))
    loop.close()
    found: dict[int, bool] = {}
    for _ in range(50):
        thread = threading.Thread(target=lambda: found.update({threading.get_ident(): loop.is_here}))
        thread.start()
        thread.join()
    if numbers[0] not in found:
        pytest.skip("this system has not given the number to any of 50 threads")
    assert not any(found.values())
