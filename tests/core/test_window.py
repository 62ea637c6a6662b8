from __future__ import annotations

import signal
import threading

import pytest

from msgbus.conformance.waiting import until
from msgbus.window import SendWindow
from tests.support import EVENT_TIMEOUT, exit_code_of, holding


@pytest.mark.parametrize("size", [1, 3])
def test_has_as_many_places_as_its_size(size: int) -> None:
    """No more places are given out than there are, and one that was given back can be taken again."""
    window = SendWindow(size)
    assert window.size == size
    assert all(window.acquire(0) for _ in range(size))
    assert not window.acquire(0)
    window.release()
    assert window.acquire(0)
    assert not window.acquire(0)


def test_a_waiter_gets_a_place_that_is_given_back() -> None:
    """Those that wait for a place go on when places are given back, each of them."""
    window = SendWindow(2)
    assert window.acquire(0)
    assert window.acquire(0)
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(window.acquire(EVENT_TIMEOUT))) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(window._waiters) < 2:
        pass
    window.release()
    window.release()
    for thread in threads:
        thread.join(EVENT_TIMEOUT)
    assert got == [True, True]
    assert not window.acquire(0)


def test_places_are_given_in_the_order_in_which_threads_came() -> None:
    """A thread that gives its place back, and takes one again at once, does not get that of another one that waits."""
    window, order = SendWindow(1), list[int]()
    assert window.acquire(0)

    def take(number: int) -> None:
        assert window.acquire(EVENT_TIMEOUT)
        order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        until(lambda: len(window._waiters) == number, "it waits", EVENT_TIMEOUT)  # noqa: B023  # at once
    for number, thread in enumerate(threads, 1):
        window.release()
        assert not window.acquire(0)
        thread.join(EVENT_TIMEOUT)
        assert order == list(range(number))
    window.release()
    assert window.idle


def test_who_waits_no_longer_leaves_its_place_to_the_next() -> None:
    """At the end of its time, and if a handler of a signal raises, as for Ctrl-C."""
    window = SendWindow(1)
    assert window.acquire(0)
    assert not window.acquire(0.01)
    threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        window.acquire(EVENT_TIMEOUT)
    window.release()
    assert window.idle


@pytest.mark.parametrize("size", [1, 2])
def test_no_place_is_lost_under_stress(size: int) -> None:
    """However many threads take and give back, never more than the size hold a place, and all get theirs."""
    window = SendWindow(size)
    holding: list[int] = []
    most: list[int] = []
    failed: list[bool] = []

    def take() -> None:
        for _ in range(500):
            if not window.acquire(EVENT_TIMEOUT):
                failed.append(True)
                return
            holding.append(1)
            most.append(len(holding))
            holding.pop()
            window.release()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(EVENT_TIMEOUT * 2)
    assert not failed
    assert max(most) <= size
    assert all(window.acquire(0) for _ in range(size))


def test_a_place_is_given_back_after_an_exception() -> None:
    """As a context manager the window gives back what was taken before, in any case."""
    window = SendWindow(1)
    assert window.acquire(0)
    with pytest.raises(KeyError), window:
        raise KeyError
    assert window.idle


def test_a_child_does_not_wait_for_a_thread_of_its_parent() -> None:
    """In the middle of a fork, what ends there gives places back, while a thread of the parent waits for one."""
    window = SendWindow(1)
    assert window.acquire(0)
    waiting = threading.Thread(target=window.acquire, args=(EVENT_TIMEOUT,))
    waiting.start()
    until(lambda: window._waiters, "a thread that waits", EVENT_TIMEOUT)
    with holding(window._changing):
        assert exit_code_of(window.release) == 0
    window.release()
    waiting.join()
