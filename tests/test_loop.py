"""msgbus.drivers.toolkit.loop: one thread that does what others hand it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from msgbus.drivers.toolkit.loop import Loop, Rest
from tests.support import PATIENCE


@pytest.fixture
def loop() -> Iterator[Loop]:
    """One that ends with the test."""
    made = Loop("test-loop")
    yield made
    made.close()
    assert made.closed


def test_it_runs_what_it_is_handed_in_order(loop: Loop) -> None:
    """From any thread, on its own, which starts with the first."""
    ran: list[Any] = []
    done = threading.Event()
    assert not loop.started
    for n in range(1000):
        (loop.call_lazily if n % 3 else loop.call)(ran.append, n)
    loop.call(lambda: ran.append(loop.is_here))
    loop.call(done.set)
    assert done.wait(PATIENCE)
    assert ran == [*range(1000), True]
    assert not loop.is_here


def test_it_goes_on_after_an_error(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """One function that fails does not take the others with it, and is logged."""
    done = threading.Event()
    loop.call(lambda: 1 // 0)
    loop.call(done.set)
    assert done.wait(PATIENCE)
    assert "ZeroDivisionError" in caplog.text


def test_what_is_last_comes_after_all_else(loop: Loop) -> None:
    """After all that was handed over, and after what has gathered was sent."""
    order: list[str] = []
    done = threading.Event()

    def before_sleep(_over: bool) -> Rest:
        if order and order[-1] != "last":
            order.append("sent")
        return Rest.SLEEP

    def both() -> None:
        loop.before_sleep = before_sleep
        loop.call_last(order.append, "last")
        loop.call_last(done.set)
        loop.call(order.append, "second")
        order.append("first")

    loop.call(both)
    assert done.wait(PATIENCE)
    assert order == ["first", "second", "sent", "last"]


def test_what_is_due_later_comes_in_its_turn(loop: Loop) -> None:
    """Earlier ones first, whatever the order in which they were asked for."""
    order: list[int] = []
    done = threading.Event()

    def ask() -> None:
        loop.call_later(0.03, done.set)
        loop.call_later(0.02, lambda: order.append(2))
        loop.call_later(0.01, lambda: order.append(1))
        loop.call_later(0.0, lambda: order.append(0))

    loop.call(ask)
    assert done.wait(PATIENCE)
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
    assert seen.wait(PATIENCE)
    stopped = threading.Event()
    loop.call(loop.unwatch, read)
    loop.call(stopped.set)
    assert stopped.wait(PATIENCE)
    os.write(write, b"b")
    os.close(write)
    assert got == [b"a"]
    assert os.read(read, 1) == b"b"
    os.close(read)


def test_a_doze_ends_with_sending_what_was_held_back(loop: Loop) -> None:
    """Where something waits for more to travel with, the thread looks again a moment later by itself."""
    over = threading.Event()

    def before_sleep(is_over: bool) -> Rest:
        if is_over:
            over.set()
        return Rest.SLEEP if over.is_set() else Rest.DOZE

    loop.before_sleep = before_sleep
    loop.call(lambda: None)
    assert over.wait(PATIENCE)


def test_close_runs_what_was_handed_over_before() -> None:
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
    assert done.wait(PATIENCE)
    assert len(ran) == len(set(ran)) == 4000
